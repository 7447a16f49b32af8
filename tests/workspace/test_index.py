"""The index of a workspace: read once while it is kept, and never at the price of a record."""

import pickle

import pytest

from g2is_ray.workspace.workspace import Workspace


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    held = Workspace(str(tmp_path / "ws"))
    held.stage("pool").begin({"k": 3}, arguments={"pool": ["a"]})
    return held


def change(held: Workspace) -> None:
    """Change the index in each way that there is."""
    held.stage("gradients").begin({"k": (1, 2)}, ["pool"], arguments={"a": (1, {"b": (2,)})})
    held.stage("graph/centered").begin({}, ["gradients"])
    held.stage("pool").extend({"k": 4})
    held.forget(["graph/centered"])


@pytest.mark.parametrize("shared", [False, True])
def test_a_kept_index_is_what_the_file_holds(shared, workspace):
    with workspace.index.kept(shared=shared):
        before = workspace.stages()
        change(workspace)
        assert workspace.stages() == Workspace(workspace.url).stages()
        assert list(workspace.stages()) == ["pool", "gradients"]
        assert list(before) == ["pool"]


def test_a_kept_index_is_read_once_whatever_is_changed(workspace, reads):
    with workspace.index.kept(shared=False):
        change(workspace)
        workspace.stage("gradients").outgrown()
    assert reads.count("workspace.json") == 1


def test_an_index_that_is_not_kept_is_read_each_time(workspace):
    other = Workspace(workspace.url)
    with workspace.index.kept(shared=False):
        workspace.stages()
        other.stage("warmup").begin({})
        assert "warmup" not in workspace.stages()
    assert "warmup" in workspace.stages()


def test_an_index_that_was_never_written_is_empty(tmp_path):
    held = Workspace(str(tmp_path / "ws"))
    with held.index.kept(shared=True):
        assert held.stages() == {}
        held.stage("pool").begin({})
        assert list(held.stages()) == ["pool"]


def test_a_pickled_workspace_reads_the_index_itself(workspace):
    with workspace.index.kept(shared=False):
        workspace.stages()
        copied = pickle.loads(pickle.dumps(workspace))
        workspace.stage("warmup").begin({})
    assert "warmup" in copied.stages()


def changed_together(first: Workspace, second: Workspace) -> None:
    """Two commands at a time change different stages, as nothing prevents without a lock."""
    with first.index.kept(shared=True), second.index.kept(shared=True):
        assert first.stages() == second.stages()
        for name in ("a", "b"):
            first.stage(f"targets/{name}/val").begin({})
            second.stage(f"targets/{name}/test").begin({})
        first.forget(["targets/b/val"])


def test_no_record_is_lost_where_others_write_too(workspace):
    changed_together(workspace, Workspace(workspace.url))
    assert list(workspace.stages()) == ["pool", "targets/a/val", "targets/a/test", "targets/b/test"]


def test_no_record_is_lost_on_object_storage_and_it_is_read_again_only_for_that(s3):
    held, other = Workspace(s3.url), Workspace(s3.url)
    held.stage("pool").begin({})
    changed_together(held, other)
    assert list(held.stages()) == ["pool", "targets/a/val", "targets/a/test", "targets/b/test"]
    s3.requests.clear()
    with held.index.kept(shared=True):
        change(held)
    assert len([one for one in s3.requests if '"GET' in one and "workspace.json" in one]) == 1
