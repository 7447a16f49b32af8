"""The workspace: whole files or none, receipts that tell, other settings refused."""

import json
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest

from g2is_ray.errors import SettingError, WorkspaceError
from g2is_ray.workspace import Workspace, array_bytes, part_name


@pytest.fixture
def workspace(tmp_path):
    return Workspace(str(tmp_path / "ws"))


@pytest.fixture(params=["local", "memory"])
def any_workspace(request, tmp_path):
    if request.param == "local":
        yield Workspace(str(tmp_path / "ws"))
        return
    held = Workspace("memory://g2is-test")
    yield held
    held.remove("")


def test_parts_sort_by_name_as_by_number():
    names = [part_name(part) for part in (0, 9, 10, 99, 12345)]
    assert names == sorted(names)


def test_what_is_written_is_read(any_workspace):
    array = np.arange(12, dtype=np.float16).reshape(3, 4)
    any_workspace.write_bytes("a/b/c.npy", array_bytes(array))
    any_workspace.write_json("a/b/c.json", {"é": [1, None]})
    np.testing.assert_array_equal(any_workspace.read_array("a/b/c.npy"), array)
    assert any_workspace.read_json("a/b/c.json") == {"é": [1, None]}
    assert any_workspace.names("a/b") == ["c.json", "c.npy"]
    assert any_workspace.names("a/none") == []
    assert any_workspace.exists("a/b/c.npy")
    assert not any_workspace.exists("a/b/d.npy")


def test_a_folder_is_downloaded_whole(any_workspace, tmp_path):
    any_workspace.write_bytes("adapter/x.json", b"1")
    any_workspace.write_bytes("adapter/y.json", b"2")
    (tmp_path / "to").mkdir()
    found = any_workspace.download("adapter", tmp_path / "to")
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {
        "x.json": b"1",
        "y.json": b"2",
    }


def test_removing_what_is_not_there_is_no_error(any_workspace):
    any_workspace.write_bytes("a/x", b"1")
    any_workspace.remove("a")
    any_workspace.remove("a")
    assert not any_workspace.exists("a/x")


def test_a_workspace_survives_pickling_and_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workspace = Workspace("relative")
    workspace.write_bytes("x", b"1")
    packed = pickle.dumps(workspace)
    monkeypatch.chdir("/")
    assert pickle.loads(packed).read_bytes("x") == b"1"


def test_a_file_is_replaced_whole_or_not_at_all(workspace, monkeypatch):
    workspace.write_bytes("x", b"old")

    def fail(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        workspace.write_bytes("x", b"new and longer")
    assert workspace.read_bytes("x") == b"old"
    assert workspace.names("") == ["x"]


@pytest.mark.parametrize("url", ["nowhere://x", "nowhere://x/y::z"])
def test_an_unknown_kind_of_storage_is_refused(url):
    with pytest.raises(SettingError, match="nowhere"):
        Workspace(url)


def test_a_missing_file_is_named(any_workspace):
    with pytest.raises(WorkspaceError, match=r"pool/x is missing"):
        any_workspace.read_bytes("pool/x")


def test_a_folder_in_the_place_of_a_file_is_named(workspace):
    workspace.write_bytes("x/y", b"")
    with pytest.raises(WorkspaceError, match=r"ws/x cannot be read: Is a directory"):
        workspace.read_bytes("x")


def test_a_file_in_the_place_of_a_folder_is_named(workspace):
    workspace.write_bytes("x", b"")
    with pytest.raises(WorkspaceError, match=r"ws/x/y cannot be written"):
        workspace.write_bytes("x/y", b"")


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", array_bytes(np.ones(9))[:-1]])
def test_a_damaged_array_is_named(data, workspace):
    workspace.write_bytes("g/part-00000.npy", data)
    with pytest.raises(WorkspaceError, match=r"g/part-00000\.npy is damaged"):
        workspace.read_array("g/part-00000.npy")


def test_an_array_of_objects_is_not_unpickled(workspace):
    path = Path(workspace.location("x.npy"))
    path.parent.mkdir()
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(WorkspaceError, match="damaged"):
        workspace.read_array("x.npy")


# Receipts


def test_a_receipt_is_written_after_its_files(workspace, monkeypatch):
    written = []
    write = Workspace.write_bytes
    monkeypatch.setattr(
        Workspace,
        "write_bytes",
        lambda self, path, data: (written.append(path), write(self, path, data)),
    )
    workspace.commit("s", "part-00000", {"a": b"1", "b": b"2"}, {"rows": 2})
    assert written == ["s/a", "s/b", "s/part-00000.json"]
    assert workspace.receipt("s", "part-00000")["rows"] == 2


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"1"),
    "altered at the same length": lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]),
    "removed": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("file", ["a", "part-00000.json"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_or_receipt_counts_as_not_done(file, damage, workspace):
    workspace.commit("s", "part-00000", {"a": b"123", "b": b""}, {"rows": 2})
    assert workspace.receipt("s", "part-00000")
    damage(Path(workspace.location(f"s/{file}")))
    if file != "a" and damage is DAMAGE["longer"]:
        Path(workspace.location(f"s/{file}")).write_text('{"rows": 2} 1')
    assert workspace.receipt("s", "part-00000") is None


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"files": {"a": 1}}', '{"files": [1]}'])
def test_a_receipt_that_is_none_counts_as_not_done(text, workspace):
    workspace.write_bytes("s/a", b"1")
    workspace.write_bytes("s/receipt.json", text.encode())
    assert workspace.receipt("s") is None


def test_a_stage_is_finished_only_with_every_part_whole(workspace):
    for part in range(3):
        workspace.commit("s", part_name(part), {f"{part_name(part)}.npy": b"1"}, {})
    assert workspace.finished("s") is None
    workspace.commit("s", "receipt", {}, {"parts": 3})
    assert workspace.finished("s")["parts"] == 3
    workspace.write_bytes("s/part-00002.npy", b"2")
    assert workspace.finished("s") is None


def test_an_unfinished_stage_names_the_command_that_does_it(workspace):
    with pytest.raises(WorkspaceError, match=r"no finished gradients yet; run `g2is gradients "):
        workspace.require("gradients", "gradients")


# Settings


def begun(workspace, **settings):
    workspace.begin("s", {"k": 3, **settings})
    workspace.write_bytes("s/part-00000.npy", b"1")


@pytest.mark.parametrize(
    ("other", "was", "now"),
    [
        ({"k": 4}, "k 3", "it is 4"),
        ({"k": 3, "center": True}, "center null", "it is true"),
        ({"k": None}, "k 3", "it is null"),
        ({"k": [1, 2]}, "k 3", r"it is \[1, 2\]"),
    ],
)
def test_other_settings_are_refused_with_both_values(other, was, now, workspace):
    begun(workspace)
    with pytest.raises(WorkspaceError, match=f"^s was made with {was}, now {now}: ") as refusal:
        workspace.begin("s", other)
    assert workspace.location("s") in str(refusal.value)
    assert workspace.read_bytes("s/part-00000.npy") == b"1"
    assert workspace.stages()["s"]["settings"] == {"k": 3}


def test_the_same_settings_go_on(workspace):
    begun(workspace, files=[{"name": "é"}])
    begun(workspace, files=[{"name": "é"}])


def test_a_stage_that_wrote_nothing_may_begin_otherwise(workspace):
    workspace.begin("s", {"k": 3})
    workspace.begin("s", {"k": 4})
    assert workspace.stages()["s"]["settings"] == {"k": 4}


def test_a_stage_made_from_another_input_is_refused(workspace):
    begun(workspace)
    workspace.begin("t", {}, inputs=["s"])
    workspace.write_bytes("t/x", b"1")
    workspace.remove("s")
    begun(workspace, seed=1)
    with pytest.raises(WorkspaceError, match=r"^t was made from another s: "):
        workspace.begin("t", {}, inputs=["s"])


def test_files_of_unknown_origin_are_not_taken_for_done(workspace):
    begun(workspace)
    Path(workspace.location("workspace.json")).unlink()
    with pytest.raises(WorkspaceError, match="does not say what made"):
        workspace.begin("s", {"k": 3})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99, "stages": {}}'])
def test_a_damaged_or_newer_index_is_refused_and_left(text, workspace):
    begun(workspace)
    Path(workspace.location("workspace.json")).write_text(text)
    with pytest.raises(WorkspaceError, match=r"workspace\.json is (damaged|not of format)"):
        workspace.begin("s", {"k": 3})
    assert workspace.read_bytes("workspace.json").decode() == text


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A folder with 256 KiB of space, and a function that gives it more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    grow = ["mount", "-o", "remount,size=16m", str(folder)]
    try:
        yield folder, lambda: subprocess.run(grow, check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_keeps_what_is_finished_and_goes_on_with_space(
    small_disk, tmp_path, g2is, refused, tiny_model
):
    folder, grow = small_disk
    rng = np.random.default_rng(0)
    pool = tmp_path / "pool.jsonl"
    with pool.open("w") as file:
        for i in range(60):
            turn = {"role": "assistant", "content": rng.bytes(1500).hex()}
            file.write(json.dumps({"id": f"r{i}", "messages": [turn]}) + "\n")
    arguments = ["ingest", "--pool", pool, "--model", tiny_model, "--max-tokens", "64"]
    arguments += ["--part-rows", "10", "--workspace", folder / "ws"]
    sentence = refused(*arguments)
    assert sentence.startswith(f"the disk is full, writing {folder}/ws/pool/part-0000")
    kept = {path: path.stat().st_ino for path in (folder / "ws/pool").iterdir()}
    finished = [path for path in kept if path.suffix == ".json"]
    assert 1 <= len(finished) < 6
    assert not [path for path in kept if path.suffix == ".tmp"]
    grow()
    g2is(*arguments)
    for receipt in finished:
        for path in (receipt, receipt.with_suffix(".parquet")):
            assert path.stat().st_ino == kept[path]
    assert json.loads((folder / "ws/pool/receipt.json").read_text())["rows"] == 60


def test_a_mapped_array_is_what_was_written_and_read_only(any_workspace):
    any_workspace.write_bytes("a.npy", array_bytes(np.arange(6)))
    array = any_workspace.map_array("a.npy")
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable
    assert array.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_mapped_remote_array_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    remote = Workspace("memory://g2is-test")
    remote.write_bytes("a.npy", array_bytes(np.arange(6)))
    array = remote.map_array("a.npy")
    assert not list(tmp_path.iterdir())
    assert array.tolist() == [0, 1, 2, 3, 4, 5]
    remote.remove("")


def test_missing_and_damaged_arrays_are_named_when_mapped(any_workspace):
    with pytest.raises(WorkspaceError, match=r"a\.npy is missing"):
        any_workspace.map_array("a.npy")
    any_workspace.write_bytes("a.npy", array_bytes(np.arange(6))[:-8])
    with pytest.raises(WorkspaceError, match=r"a\.npy is damaged"):
        any_workspace.map_array("a.npy")


# Growth


def made(workspace, stage, inputs, grown="refuse", **settings):
    """Begin a stage and, as a job would, write what is missing of it."""
    workspace.begin(stage, settings, inputs, grown=grown)
    for name in ("piece", "receipt"):
        if not workspace.exists(f"{stage}/{name}.json"):
            workspace.commit(stage, name, {}, {})


@pytest.fixture
def grown(workspace):
    """A pool that has grown since `s` was made of it, and `t` of that."""
    workspace.begin("pool", {"files": ["a"]})
    workspace.conclude("pool", {})
    made(workspace, "s", ["pool"], k=3)
    made(workspace, "t", ["s"])
    workspace.extend("pool", {"files": ["a", "b"]})
    return workspace


def test_what_a_grown_stage_was_before_is_taken_for_it(grown):
    now = grown.stages()["pool"]
    assert grown.begin("pool", {"files": ["a"]}) == now["fingerprint"]
    assert grown.stages()["pool"] == now
    with pytest.raises(WorkspaceError, match="was made with files"):
        grown.begin("pool", {"files": ["b"]})


def test_a_stage_refuses_a_grown_input_unless_it_says_what_then(grown):
    with pytest.raises(WorkspaceError, match=r"^s was made from another pool: "):
        grown.begin("s", {"k": 3}, ["pool"])


def test_a_stage_is_extended_with_its_pieces_kept_and_so_are_those_after_it(grown):
    before = grown.stages()
    for stage, inputs in (("s", ["pool"]), ("t", ["s"])):
        settings = {"k": 3} if stage == "s" else {}
        grown.begin(stage, settings, inputs, grown="extend")
        assert grown.exists(f"{stage}/piece.json")
        assert not grown.exists(f"{stage}/receipt.json")
        assert grown.stages()[stage]["grown_from"] == [before[stage]["fingerprint"]]
        assert not grown.outgrown(stage)


def test_a_stage_is_removed_to_be_made_anew_and_so_are_those_after_it(grown):
    for stage, inputs in (("s", ["pool"]), ("t", ["s"])):
        settings = {"k": 3} if stage == "s" else {}
        grown.begin(stage, settings, inputs, grown="redo")
        assert not grown.names(stage)


def test_a_stage_that_was_removed_and_not_made_yet_is_still_the_grown_one(grown):
    grown.remove("s")
    made(grown, "s", ["pool"], "redo", k=3)
    grown.begin("t", {}, ["s"], grown="redo")
    assert not grown.names("t")


def test_a_stage_that_is_kept_stays_as_it_is(grown):
    before = grown.stages()["s"]
    assert grown.begin("s", {"k": 3}, ["pool"], grown="keep") == before["fingerprint"]
    assert grown.stages()["s"] == before
    assert grown.exists("s/receipt.json")


@pytest.mark.parametrize("then", ["extend", "keep", "redo"])
def test_other_settings_are_refused_of_a_stage_whose_input_has_grown(then, grown):
    with pytest.raises(WorkspaceError, match=r"^s was made with k 3, now it is 4: "):
        grown.begin("s", {"k": 4}, ["pool"], grown=then)


@pytest.mark.parametrize("then", ["extend", "keep", "redo"])
def test_another_input_is_refused_where_a_grown_one_is_not(then, grown):
    grown.remove("pool")
    grown.begin("pool", {"files": ["c"]})
    with pytest.raises(WorkspaceError, match=r"^s was made from another pool: "):
        grown.begin("s", {"k": 3}, ["pool"], grown=then)


def test_a_stage_of_a_smaller_input_names_the_command_that_extends_it(grown):
    with pytest.raises(WorkspaceError, match="pool has grown since s was made; run `g2is x "):
        grown.require_current("s", "x")
    made(grown, "s", ["pool"], "extend", k=3)
    grown.require_current("s", "x")


def test_a_remedy_is_named_where_its_setting_differs(workspace):
    begun(workspace, files=["a"])
    with pytest.raises(WorkspaceError, match=r"now it is .*: add them, use another workspace, or"):
        workspace.begin("s", {"k": 3, "files": ["b"]}, remedies={"files": "add them"})
    with pytest.raises(WorkspaceError, match="now it is 4: use another workspace, or"):
        workspace.begin("s", {"k": 4, "files": ["a"]}, remedies={"files": "add them"})
