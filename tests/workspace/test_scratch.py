"""Scratch: what is copied fits or is refused, once in a process, and nothing is left behind."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from g2is_ray.errors import SettingError, WorkspaceError
from g2is_ray.features.rows import map_parts
from g2is_ray.workspace import scratch
from g2is_ray.workspace.storage import array_bytes
from g2is_ray.workspace.workspace import Workspace, part_name

ARRAY = np.arange(1000)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder in the place of the system's temporary one, and a process without copies."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("g2is_ray.workspace.storage._copies", {})
    return tmp_path


@pytest.fixture
def remote():
    workspace = Workspace("memory://g2is-test")
    for part in range(2):
        name = part_name(part)
        workspace.stage("s").commit(name, {f"{name}.npy": array_bytes(ARRAY + part)}, {})
    yield workspace
    workspace.storage.remove("")


def test_copies_leave_no_file_behind(remote, place):
    parts = map_parts(remote, "s", 2)
    assert not list(place.iterdir())
    np.testing.assert_array_equal(parts.arrays, [ARRAY, ARRAY + 1])


def test_a_part_is_copied_once_in_a_process(remote):
    first, second = map_parts(remote, "s", 2), map_parts(remote, "s", 2)
    for one, other in zip(first.arrays, second.arrays, strict=True):
        assert np.shares_memory(one, other)


def test_a_part_that_was_recomputed_is_copied_again(remote):
    map_parts(remote, "s", 2)
    name = part_name(0)
    remote.stage("s").commit(name, {f"{name}.npy": array_bytes(-ARRAY)}, {})
    np.testing.assert_array_equal(map_parts(remote, "s", 2).arrays, [-ARRAY, ARRAY + 1])


def test_a_copy_that_is_not_what_the_receipt_says_is_refused(remote):
    remote.storage.write_bytes(f"s/{part_name(1)}.npy", array_bytes(-ARRAY))
    with pytest.raises(WorkspaceError, match=r"s/part-00001\.npy is damaged"):
        map_parts(remote, "s", 2)


def test_more_than_the_limit_is_refused_with_what_is_needed(remote, monkeypatch, place):
    monkeypatch.setenv(scratch.LIMIT, "9000")
    with pytest.raises(WorkspaceError) as refusal:
        map_parts(remote, "s", 2)
    assert str(refusal.value) == (
        f"copies of memory://g2is-test/s need 1.63e-05 GB in {place}, more than G2IS_SCRATCH_BYTES "
        "allows (9e-06 GB): raise it"
    )
    map_parts(remote, "s", 1)
    with pytest.raises(WorkspaceError, match=r"besides 8e-06 GB held already, more than"):
        map_parts(remote, "s", 2)


def test_more_than_is_free_is_refused_with_what_is_needed(place):
    with pytest.raises(WorkspaceError, match=rf"need 1e\+12 GB in {place}, where .* GB are free"):
        scratch.require(10**21, 0, "it")


def test_a_limit_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv(scratch.LIMIT, "10G")
    with pytest.raises(SettingError, match="G2IS_SCRATCH_BYTES should be a number of bytes"):
        scratch.require(1, 0, "it")


def test_a_folder_ends_with_its_block(place):
    with scratch.folder() as folder:
        (folder / "x").write_bytes(b"1")
    assert not list(place.iterdir())


HOLD = """
import sys, time
from g2is_ray.workspace import scratch
with scratch.folder() as folder:
    (folder / "x").write_bytes(b"1")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_a_killed_process_leaves_what_the_next_removes_and_no_other(place, monkeypatch):
    root = Path(scratch.__file__).parents[2]
    environment = {"TMPDIR": str(place), "PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        killed, alive = (Path(holder.stdout.readline().strip()) for holder in holders)
        (place / "g2is-scratch-of-a-user").mkdir()
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait()
        assert (killed / "x").exists()
        with scratch.folder():
            assert not killed.exists()
            assert (alive / "x").exists()
        assert (place / "g2is-scratch-of-a-user").exists()
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()
