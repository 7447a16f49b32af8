"""A workspace from somebody else: it enables no code, and nothing outside of it is changed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool_files import row, write
from selection_workspace import make_workspace

from actors.trainer import _names_own_checkpoints
from g2is_ray.config import ModelSettings, PoolSettings
from g2is_ray.errors import InputError, SettingError, WorkspaceError
from g2is_ray.models.loading import load_adapter
from g2is_ray.workspace.workspace import Workspace
from jobs.cli import main
from jobs.session import Session

NASTY = (
    *(None, True, -1, 0, 2**40, 10**30, 1e308, "", "x", "../../outside", "/etc", "a\x00b"),
    *("\ud800", [], {}, [None], {"a": 1}, [[[]]], "x" * 5000, "\x1b[2J", [0] * 50),
)


@pytest.fixture(autouse=True)
def folder(empty_folder):
    """The current folder, with a folder `outside` of the workspace `ws`."""
    (empty_folder / "outside").mkdir()
    (empty_folder / "outside" / "kept").write_text("kept")
    return empty_folder


def outside(folder):
    """Everything that is not in the workspace, with its content."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path != folder / "ws" and folder / "ws" not in path.parents
    }


def altered_index(**changes):
    """Changes what the pool's record remembers."""
    path = Path("ws/workspace.json")
    index = json.loads(path.read_text())
    index["stages"]["pool"]["arguments"] |= changes
    path.write_text(json.dumps(index))


# Links


def put_link(kind, place, to):
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "hard":
        os.link(to, place)
    else:
        place.symlink_to(to)


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_link_in_the_place_of_a_file_is_replaced_by_the_file(kind, folder):
    put_link(kind, folder / "ws/s/file", folder / "outside/kept")
    before, workspace = outside(folder), Workspace("ws")
    workspace.storage.write_bytes("s/file", b"new")
    assert workspace.storage.read_bytes("s/file") == b"new"
    assert not Path("ws/s/file").is_symlink()
    assert outside(folder) == before


def test_nothing_is_added_to_what_a_link_leads_to(folder):
    put_link("hard", folder / "ws/hard", folder / "outside/kept")
    put_link("symbolic", folder / "ws/symbolic", folder / "outside/kept")
    before, workspace = outside(folder), Workspace("ws")
    workspace.storage.append_bytes("hard", b" and new")
    assert workspace.storage.read_bytes("hard") == b"kept and new"
    with pytest.raises(WorkspaceError, match=r"symbolic is a link, through which nothing is wri"):
        workspace.storage.append_bytes("symbolic", b"new")
    assert outside(folder) == before


CHANGES = {
    "write": lambda workspace: workspace.storage.write_bytes("s/inner/file", b"new"),
    "append": lambda workspace: workspace.storage.append_bytes("s/inner/file", b"new"),
    "arrow": lambda workspace: workspace.storage.arrow("s/inner"),
    "remove": lambda workspace: workspace.storage.remove("s/inner/kept"),
}


@pytest.mark.parametrize("to", ["outside", "outside/none"])
@pytest.mark.parametrize("at", ["s", "s/inner"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_link_in_the_place_of_a_folder_is_refused(change, at, to, folder):
    put_link("symbolic", folder / "ws" / at, folder / to)
    before = outside(folder)
    with pytest.raises(WorkspaceError, match=f"ws/{at} is a link"):
        change(Workspace("ws"))
    assert outside(folder) == before


def test_of_a_link_the_link_itself_is_removed(folder):
    for place in ("ws/folder", "ws/s/folder"):
        put_link("symbolic", folder / place, folder / "outside")
    put_link("symbolic", folder / "ws/s/file", folder / "outside/kept")
    before, workspace = outside(folder), Workspace("ws")
    workspace.storage.remove("folder")
    workspace.storage.remove("s")
    assert not workspace.storage.names("")
    assert outside(folder) == before


def test_a_library_that_writes_by_itself_gets_no_folder_with_links(folder):
    workspace = Workspace("ws")
    workspace.storage.write_bytes("checkpoints/run/a/x", b"")
    assert workspace.storage.writable_folder("checkpoints")
    put_link("symbolic", folder / "ws/checkpoints/run/a/y", folder / "outside")
    with pytest.raises(WorkspaceError, match=r"checkpoints/run/a/y is a link"):
        workspace.storage.arrow("checkpoints")


def test_the_root_may_be_a_link_and_files_are_read_through_links(folder):
    Path("ws").symlink_to(folder / "outside")
    workspace = Workspace("ws")
    workspace.storage.write_bytes("s/a", b"1")
    Path("outside/t").symlink_to(folder / "outside/s")
    assert workspace.storage.read_bytes("t/a") == b"1"
    assert workspace.storage.names("t") == ["a"]


@pytest.mark.parametrize("file", ["events.jsonl", ".lock", "workspace.json", "pool"])
def test_a_command_follows_no_link(file, folder, tiny_model):
    pool = write("pool.jsonl", row(0))
    put_link("symbolic", folder / "ws" / file, folder / "outside/none")
    before = outside(folder)
    main(["ingest", "--pool", pool, "--model", tiny_model, "--workspace", "ws"])
    assert outside(folder) == before


@pytest.mark.parametrize("read", ["read_bytes", "map_array", "append_bytes"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(read):
    Path("ws").mkdir()
    os.mkfifo("ws/x")
    with pytest.raises(WorkspaceError, match="pipe or a device"):
        getattr(Workspace("ws").storage, read)(*(("x", b"1") if read == "append_bytes" else ("x",)))


# Names


BAD = [
    "../outside/kept",
    "s/../../outside/kept",
    "/etc/passwd",
    "s//x",
    "./x",
    "a\x00b",
    "a\\b",
    "..",
]


@pytest.mark.parametrize("path", BAD)
def test_no_path_leaves_the_workspace(path, folder):
    before, workspace = outside(folder), Workspace("ws")
    for use in ("read_bytes", "exists", "names", "remove", "read_json", "tag", "writable_folder"):
        with pytest.raises(WorkspaceError, match="cannot be a file of the workspace"):
            getattr(workspace.storage, use)(path)
    for use in ("write_bytes", "append_bytes"):
        with pytest.raises(WorkspaceError, match="cannot be a file of the workspace"):
            getattr(workspace.storage, use)(path, b"new")
    assert outside(folder) == before


@pytest.mark.parametrize("name", [*BAD, "x" * 300, "", "\x1b[31m", "a b", "s/" * 9 + "s"])
def test_a_stage_of_a_bad_name_is_refused(name, folder, refused):
    workspace = Workspace("ws")
    workspace.stage("pool").begin({})
    index = workspace.storage.read_json("workspace.json")
    index["stages"][name] = index["stages"]["pool"]
    workspace.storage.write_json("workspace.json", index)
    before = outside(folder)
    for command in ("status", "report", "run", "tune"):
        assert "workspace.json is damaged (stages" in refused(command, "--workspace", "ws")
    assert outside(folder) == before


def test_a_receipt_names_files_of_its_stage_only(folder):
    workspace = Workspace("ws")
    receipt = workspace.stage("s").commit("part-00000", {"a": b"1"}, {})
    workspace.storage.write_json(
        "s/part-00000.json", {"files": {"../../outside/kept": receipt["files"]["a"]}}
    )
    assert workspace.stage("s").verified("part-00000") is None


def test_ray_train_gets_no_record_that_names_a_folder_elsewhere():
    workspace = Workspace("ws")
    for name, is_own in (
        ("checkpoint_2026-11-25_07-00-00.123456", True),
        ("../../../outside", False),
    ):
        record = {"checkpoint_results": [{"checkpoint_dir_name": name, "metrics": {}}]}
        workspace.storage.write_json("checkpoints/warmup/checkpoint_manager_snapshot.json", record)
        assert _names_own_checkpoints(workspace, "checkpoints/warmup") == is_own


# Code


@pytest.fixture
def ingested(g2is, tiny_model):
    write("pool.jsonl", *(row(i) for i in range(9)))
    g2is("ingest", "--pool", "pool.jsonl", "--model", tiny_model, "--workspace", "ws")


@pytest.mark.parametrize("command", ["ingest", "gradients", "warmup", "embeddings", "run"])
def test_a_remembered_trust_runs_no_code(command, ingested, folder, refused):
    model = folder / "model"
    model.mkdir()
    maps = {"AutoConfig": "code.Config", "AutoTokenizer": ["code.Tokenizer", None]}
    (model / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": maps}))
    (model / "code.py").write_text(f"open({str(folder / 'owned')!r}, 'w').close()")
    altered_index(trust_remote_code=True, model=str(model))
    more = ["--pool", "pool.jsonl"] if command == "ingest" else []
    more += ["--target", "t=pool.jsonl"] if command != "warmup" else []
    sentence = refused(command, "--workspace", "ws", *more)
    assert f"give --model {model} --trust-remote-code again" in sentence
    assert not (folder / "owned").exists()


@pytest.mark.parametrize(
    ("given", "runs"),
    [
        ({}, None),
        ({"trust_remote_code": True}, None),
        ({"model": "m"}, None),
        ({"model": "m", "trust_remote_code": True}, True),
        ({"trust_remote_code": False}, False),
    ],
)
@pytest.mark.parametrize("remembered", [True, False])
def test_code_is_run_of_a_model_that_the_command_names_and_asks_for(
    given, runs, remembered, ingested
):
    altered_index(trust_remote_code=remembered)
    session = Session("ws", given)
    if runs is None and (remembered or given.get("trust_remote_code")):
        with pytest.raises(SettingError, match="--trust-remote-code again"):
            session.settings(ModelSettings, "pool")
    else:
        assert session.settings(ModelSettings, "pool").trust_remote_code == bool(runs)


SOURCES = [
    "reference::x.json",
    "reference://x",
    "zip://a.jsonl::https://h/x.zip",
    "git://x",
    "data:x",
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_remembered_source_is_a_plain_path_or_url(source, ingested):
    altered_index(pool=[source])
    with pytest.raises(SettingError, match="read only if this command names it: give --pool again"):
        Session("ws", {}).settings(PoolSettings, "pool")
    assert Session("ws", {"pool": ["a"]}).settings(PoolSettings, "pool").pool == ("a",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_tokens", "x"), ("max_tokens", 10**30), ("seed", -1), ("model", ["m"])),
        *(("address", "ray://evil:1"), ("report_to", ["wandb"]), ("append", ["x"]), ("a", 1)),
    ],
)
def test_what_cannot_have_been_remembered_is_refused(name, value, ingested, refused):
    altered_index(**{name: value})
    sentence = refused("ingest", "--workspace", "ws", "--pool", "pool.jsonl")
    assert "workspace.json is damaged: pool remembers" in sentence


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "3", "{", "{}", '{"peft_type": "XLORA"}', '{"peft_type": "LORA", "r": []}'),
        '{"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "antigravity"}',
    ],
)
def test_an_adapter_that_is_no_plain_lora_is_refused(text):
    Path("adapter_config.json").write_text(text)
    with pytest.raises(InputError, match=r"the adapter in \. cannot be used"):
        load_adapter(None, ".")


# Anything


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """A workspace with finished selections, and the content of all its JSON files."""
    root = tmp_path_factory.mktemp("selected")
    make_workspace(root / "ws")
    arguments = ["select", "--target", "law=x", "--fraction", "0.1"]
    assert main([*arguments, "--workspace", str(root / "ws")]) == 0
    files = [path for path in (root / "ws").rglob("*.json*") if path.name != "events.jsonl"]
    return root, {path: path.read_bytes() for path in files}


def nodes(value, path=()):
    """Paths to everything in a JSON value."""
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, one in inner:
        yield from nodes(one, (*path, key))


@st.composite
def mutations(draw):
    """Changes the bytes of a JSON file somewhere."""
    if draw(st.integers(0, 9)) == 0:
        raw = draw(st.sampled_from([b"", b"{", b"\xff\xfe", b"[" * 90_000, b"null", b"\x00" * 9]))
        return lambda data: raw
    pick, how = draw(st.integers(0, 2**30)), draw(st.sampled_from(["replace", "remove", "rename"]))
    nasty = draw(st.sampled_from(NASTY))

    def mutate(data):
        first, *rest = data.split(b"\n") if data.startswith(b'{"') else (data,)
        value = json.loads(first)
        places = list(nodes(value))
        path = places[pick % len(places)]
        if not path:
            return json.dumps(nasty).encode()
        at = value
        for key in path[:-1]:
            at = at[key]
        if how == "replace":
            at[path[-1]] = nasty
        else:
            held = at.pop(path[-1])
            if how == "rename" and isinstance(at, dict):
                at[nasty if isinstance(nasty, str) else "other"] = held
        return b"\n".join([json.dumps(value).encode(), *rest])

    return mutate


@pytest.mark.fuzz
@given(st.data())
def test_any_record_is_read_or_refused_in_one_sentence(selected, data):
    root, files = selected
    written = [path for path, content in files.items() if content]
    order = sorted(written, key=lambda path: (path.name != "workspace.json", str(path)))
    # workspace.json, where most is, as often as all others together
    path = order[max(0, data.draw(st.integers(1 - len(order), len(order) - 1)))]
    mutate = data.draw(mutations())
    before = outside(root)
    path.write_bytes(mutate(files[path]))
    (root / "ws/report.json").unlink(missing_ok=True)
    try:
        for command in (["status"], ["report"], ["select", "--target", "law=x"]):
            assert main([*command, "--workspace", str(root / "ws")]) in (0, 2)
            assert outside(root) == before
    finally:
        for changed, content in files.items():
            changed.parent.mkdir(parents=True, exist_ok=True)
            changed.write_bytes(content)


@pytest.mark.parametrize("data", [b"[" * 5_000, np.random.default_rng(0).bytes(500)])
def test_any_bytes_as_index_are_refused(data, refused):
    Path("ws").mkdir()
    Path("ws/workspace.json").write_bytes(data)
    for command in ("status", "report", "run", "tune"):
        assert "workspace.json is damaged" in refused(command, "--workspace", "ws")
