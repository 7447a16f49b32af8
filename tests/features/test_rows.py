"""Rows of an array and of mapped parts are found by number."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from g2is_ray.features.rows import ArrayRows, MappedParts, map_neighbors
from g2is_ray.workspace.storage import array_bytes
from g2is_ray.workspace.workspace import Workspace


def test_an_array_gives_the_same_blocks_as_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g2is_ray.features.rows.BLOCK_ROWS", 4)
    x = np.random.default_rng(0).random((10, 3), dtype=np.float32)
    rows = ArrayRows(x)
    np.testing.assert_array_equal(np.concatenate([block for _, block in rows.blocks()]), x)
    np.testing.assert_array_equal(rows.take(np.array([9, 0])), x[[9, 0]])


def test_parts_of_any_size_are_one_array() -> None:
    whole = np.arange(24).reshape(12, 2)
    parts = MappedParts([whole[:5], whole[5:5], whole[5:6], whole[6:]])
    assert len(parts) == 12
    for row in range(12):
        np.testing.assert_array_equal(parts[row], whole[row])
    np.testing.assert_array_equal(np.asarray(parts), whole)
    rows = np.array([11, 5, 0, 4, 6])
    np.testing.assert_array_equal(parts.take(rows), whole[rows])


def test_neighbors_are_those_written(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    lists = np.arange(21, dtype=np.int32).reshape(7, 3)
    for part, own in enumerate((lists[:4], lists[4:])):
        name = f"graph/it/part-{part:05d}.neighbors.npy"
        workspace.storage.write_bytes(name, array_bytes(own))
    workspace.stage("graph/it").conclude({"parts": 2})
    found = map_neighbors(workspace, "graph/it")
    np.testing.assert_array_equal([found[row] for row in range(7)], lists)


def test_more_parts_are_mapped_than_a_process_may_open_files_at_first(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    for part in range(100):
        workspace.storage.write_bytes(
            f"gradients/part-{part:05d}.npy", array_bytes(np.full((1, 1), part))
        )
    code = (
        "import resource, sys\n"
        "from g2is_ray.features.rows import map_parts\n"
        "from g2is_ray.workspace.workspace import Workspace\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "print(map_parts(Workspace(sys.argv[1]), 'gradients', 100)[99][0])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "99\n"
