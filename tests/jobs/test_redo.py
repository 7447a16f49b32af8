"""`--redo`: stages and what was made from them are removed, no others, and then recomputed."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from main_job import command as main_job
from main_job import run
from pool_files import row, write

from g2is_ray.workspace.layout import variants_in
from g2is_ray.workspace.workspace import Workspace
from jobs.redo import redo, with_dependents
from jobs.session import Session

pytestmark = pytest.mark.usefixtures("empty_folder")

CHAIN = {
    "pool": [],
    "targets/a/val": [],
    "targets/a/test": [],
    "targets/b/val": [],
    "warmup": ["pool"],
    "gradients": ["pool", "warmup"],
    "targets/a/gradients": ["targets/a/val", "warmup"],
    "targets/b/gradients": ["targets/b/val", "warmup"],
    "graph/centered": ["gradients"],
    "selections/a": ["graph/centered", "targets/a/gradients"],
    "selections/a@random": ["pool", "selections/a"],
    "selections/b": ["graph/centered", "targets/b/gradients"],
    "tuned/a": ["selections/a"],
    "tuned/a@random": ["selections/a@random"],
    "tuned/b": ["selections/b"],
    "evaluations/a": ["targets/a/test"],
    "comparisons/100/a/selections/less": ["gradients", "targets/a/gradients"],
    "comparisons/100/a/trials": ["targets/a/test"],
}
"""Stages of a finished run, with what each is made from."""

READ = {stage for stage, inputs in CHAIN.items() if not inputs}


@pytest.fixture
def workspace() -> Workspace:
    held = Workspace("ws")
    for stage, inputs in CHAIN.items():
        held.stage(stage).begin({"stage": stage}, inputs)
        held.storage.write_bytes(f"{stage}/x", b"")
    for name in ("base", "selection", "random", "receipt"):
        held.storage.write_json(f"evaluations/a/{name}.json", {})
    for kind in ("json", "html"):
        held.storage.write_bytes(f"comparisons/100/comparison.{kind}", b"")
    return held


def left(held: Workspace) -> set[str]:
    return {stage for stage in CHAIN if held.storage.exists(f"{stage}/x")}


@pytest.mark.parametrize(
    ("names", "removed"),
    [
        (["evaluations/a"], {"evaluations/a"}),
        (["tuned/a"], {"tuned/a"}),
        (["selections/a@random"], {"selections/a@random", "tuned/a@random"}),
        (["tuned/b", "tuned/a"], {"tuned/a", "tuned/b"}),
        (["graph"], {s for s in CHAIN if s.startswith(("graph", "selections", "tuned"))}),
        (["targets/a/test"], {"targets/a/test", "evaluations/a", "comparisons/100/a/trials"}),
        (["targets/b"], {"targets/b/val", "targets/b/gradients", "selections/b", "tuned/b"}),
        (["warmup"], CHAIN.keys() - READ - {"evaluations/a"}),
        (["pool"], CHAIN.keys() - (READ - {"pool"}) - {"evaluations/a"}),
    ],
)
def test_a_stage_is_removed_with_what_was_made_from_it_and_no_other(names, removed, workspace):
    redo(Session("ws", {"redo": names}))
    assert left(workspace) == CHAIN.keys() - removed


def test_scores_of_what_is_removed_go_and_others_stay(workspace):
    redo(Session("ws", {"redo": ["tuned/a@random"]}))
    names = workspace.storage.names("evaluations/a")
    assert names == ["base.json", "selection.json", "x"]
    assert workspace.storage.exists("comparisons/100/comparison.html")
    redo(Session("ws", {"redo": ["gradients"]}))
    assert not workspace.storage.exists("comparisons/100/comparison.html")


def test_what_is_removed_keeps_its_settings_and_a_variant_its_selections(workspace):
    redo(Session("ws", {"redo": ["selections/a"]}))
    known = workspace.stages()
    assert {"selections/a", "tuned/a"} <= known.keys()
    assert not {"selections/a@random", "tuned/a@random"} & known.keys()


@pytest.mark.parametrize("joint", [True, False])
def test_a_joint_selection_stays_known_only_to_a_command_that_makes_it_again(joint, workspace):
    workspace.stage("selections/joint").begin(
        {"target_weight": {"a": 1, "b": 1}}, ["graph/centered"]
    )
    redo(Session("ws", {"redo": ["graph"], "joint": joint}))
    assert ("joint" in variants_in(workspace, "a")) == joint


def test_dependents_follow_in_the_order_of_work(workspace):
    assert with_dependents(["warmup"], workspace.stages())[:3] == [
        "warmup",
        "gradients",
        "targets/a/gradients",
    ]


@pytest.mark.parametrize(
    "name", ["grahp", "../outside", "/", "", ".", "targets/c", "checkpoints", "*"]
)
def test_a_name_of_no_stage_is_refused_and_nothing_is_removed(name, workspace, refused):
    sentence = refused("graph", "--workspace", "ws", "--redo", name)
    assert sentence.startswith(f"redo {name} names no stage of ws; there are pool, ")
    assert left(workspace) == CHAIN.keys()


def test_nothing_is_removed_while_another_command_writes(workspace, refused):
    with Session("ws", {}).writing("test"):
        assert "another command is writing" in refused(
            "tune", "--workspace", "ws", "--redo", "tuned"
        )
    assert left(workspace) == CHAIN.keys()


def test_nothing_is_removed_that_could_not_be_read_again(g2is, refused, tiny_model):
    write("pool.jsonl", *(row(i) for i in range(9)))
    there = ["--workspace", "ws", "--model", tiny_model]
    g2is("ingest", "--pool", "pool.jsonl", *there)
    Path("pool.jsonl").unlink()
    assert "no such file" in refused("ingest", "--workspace", "ws", "--redo", "pool")
    assert Workspace("ws").stage("pool").finished()


def told(sentence: str) -> list[str]:
    """The command that a refusal names, after `g2is`."""
    first, *rest = shlex.split(re.search("`(.*)`", sentence)[1])
    assert first == "g2is"
    return rest


def test_the_command_that_a_refusal_names_reads_a_changed_target_again(g2is, refused, tiny_model):
    write("pool.jsonl", *(row(i) for i in range(9)))
    write("t.jsonl", row(1))
    there = ["--workspace", "ws", "--model", tiny_model]
    g2is("ingest", "--pool", "pool.jsonl", "--target", "t=t.jsonl", *there)
    before = {path: path.stat().st_mtime_ns for path in Path("ws/pool").iterdir()}
    write("t.jsonl", row(2))
    given = ["ingest", "--pool", "pool.jsonl", "--target", "t=t.jsonl", *there]
    command = told(refused(*given))
    assert command == ["run", "--redo", "targets/t/val", *given[1:]]
    g2is("ingest", *command[1:])  # what `run` does first
    g2is(*given)
    g2is("ingest", "--workspace", "ws", "--redo", "targets/t")  # from the file as it is remembered
    assert {path: path.stat().st_mtime_ns for path in Path("ws/pool").iterdir()} == before


def test_another_model_is_refused_and_all_that_was_read_with_it_is_read_again(
    g2is, refused, tiny_model
):
    shutil.copytree(tiny_model, "lm")
    write("pool.jsonl", *(row(i) for i in range(9)))
    rows = ["--pool", "pool.jsonl", "--target", "t=pool.jsonl"]
    g2is("ingest", *rows, "--workspace", "ws", "--model", "lm")
    shutil.copytree("lm", "copied")
    g2is("ingest", *rows, "--workspace", "ws", "--model", "copied")  # is the same one
    assert Workspace("ws").stages()["pool"]["arguments"]["model"] == str(Path("copied").resolve())
    weights = bytearray(Path("copied/model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    Path("copied/model.safetensors").write_bytes(weights)
    for command in ("ingest", "gradients"):
        given = [*rows, "--workspace", "ws"] if command == "ingest" else ["--workspace", "ws"]
        sentence = refused(command, *given)
        assert sentence.startswith("pool was made with model ")
        assert "run --redo pool targets/t/val " in sentence
    g2is("ingest", *told(sentence)[1:])
    g2is("ingest", *rows, "--workspace", "ws")


@pytest.mark.usefixtures("in_process")
def test_only_what_depends_on_a_changed_target_is_recomputed(inputs, finished, tmp_path):
    workspace = shutil.copytree(finished, tmp_path / "ws")
    (tmp_path / "in").mkdir()
    for file in ("pool.jsonl", "val.jsonl", "test.jsonl", "run.yaml"):
        shutil.copy(inputs / file, tmp_path / "in")
    lines = (inputs / "val.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "in/val.jsonl").write_text("".join(lines[:-1]))
    arguments = main_job(tmp_path / "in", workspace)
    before = times(workspace)
    run([arguments[0], "--redo", "targets/gsm8k/val", *arguments[1:]])
    changed = {path for path, time in times(workspace).items() if before.get(path) != time}
    kept = {path for path in before if path.parts[0] in ("pool", "warmup", "gradients", "graph")}
    assert kept
    assert not kept & changed
    for stage in (
        "targets/gsm8k/val",
        "targets/gsm8k/gradients",
        "selections/gsm8k",
        "tuned/gsm8k",
    ):
        assert Path(stage, "receipt.json") in changed
    assert Path("evaluations/gsm8k/base.json") not in changed
    assert Path("evaluations/gsm8k/selection.json") in changed


def times(workspace: Path) -> dict[Path, int]:
    files = (path for path in workspace.rglob("*") if path.is_file())
    return {path.relative_to(workspace): path.stat().st_mtime_ns for path in files}
