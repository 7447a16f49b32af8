"""The workspace: receipts that tell, other settings refused."""

from pathlib import Path

import pytest

from g2is_ray.errors import WorkspaceError
from g2is_ray.workspace.storage import Storage
from g2is_ray.workspace.workspace import Workspace, part_name


@pytest.fixture
def workspace(tmp_path):
    return Workspace(str(tmp_path / "ws"))


def test_parts_sort_by_name_as_by_number():
    names = [part_name(part) for part in (0, 9, 10, 99, 12345)]
    assert names == sorted(names)


# Receipts


def test_a_receipt_is_written_after_its_files(workspace, monkeypatch):
    written = []
    write = Storage.write_bytes
    monkeypatch.setattr(
        Storage,
        "write_bytes",
        lambda self, path, data: (written.append(path), write(self, path, data)),
    )
    workspace.stage("s").commit("part-00000", {"a": b"1", "b": b"2"}, {"rows": 2})
    assert written == ["s/a", "s/b", "s/part-00000.json"]
    assert workspace.stage("s").verified("part-00000")["rows"] == 2


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
    workspace.stage("s").commit("part-00000", {"a": b"123", "b": b""}, {"rows": 2})
    assert workspace.stage("s").verified("part-00000")
    damage(Path(workspace.storage.location(f"s/{file}")))
    if file != "a" and damage is DAMAGE["longer"]:
        Path(workspace.storage.location(f"s/{file}")).write_text('{"rows": 2} 1')
    assert workspace.stage("s").verified("part-00000") is None


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"files": {"a": 1}}', '{"files": [1]}'])
def test_a_receipt_that_is_none_counts_as_not_done(text, workspace):
    workspace.storage.write_bytes("s/a", b"1")
    workspace.storage.write_bytes("s/receipt.json", text.encode())
    assert workspace.stage("s").verified() is None


def test_a_stage_is_finished_only_with_every_part_whole(workspace):
    for part in range(3):
        workspace.stage("s").commit(part_name(part), {f"{part_name(part)}.npy": b"1"}, {})
    assert workspace.stage("s").finished() is None
    workspace.stage("s").commit("receipt", {}, {"parts": 3})
    assert workspace.stage("s").finished()["parts"] == 3
    workspace.storage.write_bytes("s/part-00002.npy", b"2")
    assert workspace.stage("s").finished() is None


def test_an_unfinished_stage_names_the_command_that_does_it(workspace):
    with pytest.raises(WorkspaceError, match=r"no finished gradients yet; run `g2is gradients "):
        workspace.stage("gradients").require()


# Settings


def begun(workspace, **settings):
    workspace.stage("s").begin({"k": 3, **settings})
    workspace.storage.write_bytes("s/part-00000.npy", b"1")


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
        workspace.stage("s").begin(other)
    command = f"g2is run --redo s --workspace {workspace.url}"
    assert f": run `{command}` to recompute it and all that was made from it, or use " in str(
        refusal.value
    )
    assert workspace.storage.read_bytes("s/part-00000.npy") == b"1"
    assert workspace.stages()["s"]["settings"] == {"k": 3}


def test_the_same_settings_go_on(workspace):
    begun(workspace, files=[{"name": "é"}])
    begun(workspace, files=[{"name": "é"}])


def test_a_stage_that_wrote_nothing_may_begin_otherwise(workspace):
    workspace.stage("s").begin({"k": 3})
    workspace.stage("s").begin({"k": 4})
    assert workspace.stages()["s"]["settings"] == {"k": 4}


def test_a_stage_made_from_another_input_is_refused(workspace):
    begun(workspace)
    workspace.stage("t").begin({}, inputs=["s"])
    workspace.storage.write_bytes("t/x", b"1")
    workspace.storage.remove("s")
    begun(workspace, seed=1)
    with pytest.raises(WorkspaceError, match=r"^t was made from another s: "):
        workspace.stage("t").begin({}, inputs=["s"])


def test_files_of_unknown_origin_are_not_taken_for_done(workspace):
    begun(workspace)
    Path(workspace.storage.location("workspace.json")).unlink()
    with pytest.raises(WorkspaceError, match="does not say what made"):
        workspace.stage("s").begin({"k": 3})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99, "stages": {}}', "\x00"])
def test_a_damaged_or_newer_index_is_refused_and_left(text, workspace):
    begun(workspace)
    Path(workspace.storage.location("workspace.json")).write_text(text)
    with pytest.raises(WorkspaceError, match=r"workspace\.json is (damaged|not of format)"):
        workspace.stage("s").begin({"k": 3})
    assert workspace.storage.read_bytes("workspace.json").decode() == text


# Growth


def made(workspace, stage, inputs, grown="refuse", **settings):
    """Begin a stage and, as a job would, write what is missing of it."""
    workspace.stage(stage).begin(settings, inputs, grown=grown)
    for name in ("piece", "receipt"):
        if not workspace.storage.exists(f"{stage}/{name}.json"):
            workspace.stage(stage).commit(name, {}, {})


@pytest.fixture
def grown(workspace):
    """A pool that has grown since `s` was made of it, and `t` of that."""
    workspace.stage("pool").begin({"files": ["a"]})
    workspace.stage("pool").conclude({})
    made(workspace, "s", ["pool"], k=3)
    made(workspace, "t", ["s"])
    workspace.stage("pool").extend({"files": ["a", "b"]})
    return workspace


def test_what_a_grown_stage_was_before_is_taken_for_it(grown):
    now = grown.stages()["pool"]
    assert grown.stage("pool").begin({"files": ["a"]}) == now["fingerprint"]
    assert grown.stages()["pool"] == now
    with pytest.raises(WorkspaceError, match="was made with files"):
        grown.stage("pool").begin({"files": ["b"]})


def test_a_stage_refuses_a_grown_input_unless_it_says_what_then(grown):
    with pytest.raises(WorkspaceError, match=r"^s was made from another pool: "):
        grown.stage("s").begin({"k": 3}, ["pool"])


def test_a_stage_is_extended_with_its_pieces_kept_and_so_are_those_after_it(grown):
    before = grown.stages()
    for stage, inputs in (("s", ["pool"]), ("t", ["s"])):
        settings = {"k": 3} if stage == "s" else {}
        grown.stage(stage).begin(settings, inputs, grown="extend")
        assert grown.storage.exists(f"{stage}/piece.json")
        assert not grown.storage.exists(f"{stage}/receipt.json")
        assert grown.stages()[stage]["grown_from"] == [before[stage]["fingerprint"]]
        assert not grown.stage(stage).outgrown()


def test_a_stage_is_removed_to_be_recomputed_and_so_are_those_after_it(grown):
    for stage, inputs in (("s", ["pool"]), ("t", ["s"])):
        settings = {"k": 3} if stage == "s" else {}
        grown.stage(stage).begin(settings, inputs, grown="redo")
        assert not grown.storage.names(stage)


def test_a_stage_that_was_removed_and_not_made_yet_is_still_the_grown_one(grown):
    grown.storage.remove("s")
    made(grown, "s", ["pool"], "redo", k=3)
    grown.stage("t").begin({}, ["s"], grown="redo")
    assert not grown.storage.names("t")


def test_a_stage_that_is_kept_stays_as_it_is(grown):
    before = grown.stages()["s"]
    assert grown.stage("s").begin({"k": 3}, ["pool"], grown="keep") == before["fingerprint"]
    assert grown.stages()["s"] == before
    assert grown.storage.exists("s/receipt.json")


@pytest.mark.parametrize("then", ["extend", "keep", "redo"])
def test_other_settings_are_refused_of_a_stage_whose_input_has_grown(then, grown):
    with pytest.raises(WorkspaceError, match=r"^s was made with k 3, now it is 4: "):
        grown.stage("s").begin({"k": 4}, ["pool"], grown=then)


@pytest.mark.parametrize("then", ["extend", "keep", "redo"])
def test_another_input_is_refused_where_a_grown_one_is_not(then, grown):
    grown.storage.remove("pool")
    grown.stage("pool").begin({"files": ["c"]})
    with pytest.raises(WorkspaceError, match=r"^s was made from another pool: "):
        grown.stage("s").begin({"k": 3}, ["pool"], grown=then)


def test_a_stage_of_a_smaller_input_names_the_command_that_extends_it(grown):
    with pytest.raises(WorkspaceError, match="pool has grown since s was made; run `g2is run "):
        grown.stage("s").require_current()
    made(grown, "s", ["pool"], "extend", k=3)
    grown.stage("s").require_current()


def test_a_remedy_is_named_where_its_setting_differs(workspace):
    begun(workspace, files=["a"])
    with pytest.raises(WorkspaceError, match=r"now it is .*: add them, or run `g2is run --redo s "):
        workspace.stage("s").begin({"k": 3, "files": ["b"]}, remedies={"files": "add them"})
    with pytest.raises(WorkspaceError, match="now it is 4: run `g2is run"):
        workspace.stage("s").begin({"k": 4, "files": ["a"]}, remedies={"files": "add them"})
