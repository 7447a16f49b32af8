"""Rows of a pool that need not fit into memory: an array, or part files mapped from disk."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from g2is_ray.workspace.workspace import Workspace, part_name

BLOCK_ROWS = 1024  # rows formed at a time in a pass over the pool


class Rows(Protocol):
    """Unit rows [n, d] of a pool; a row of zeros is invalid."""

    @property
    def dimensions(self) -> int: ...

    def __len__(self) -> int: ...

    def take(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """The given rows [m, d], in the order given."""
        ...

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All rows in order, as first row and rows [b, d] of one block after another."""
        ...


class ArrayRows:
    """Rows in memory."""

    def __init__(self, x: NDArray[np.float32]) -> None:
        self._x = x
        self.dimensions = x.shape[1]

    def __len__(self) -> int:
        return len(self._x)

    def take(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        return self._x[rows]

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for first in range(0, len(self._x), BLOCK_ROWS):
            yield first, self._x[first : first + BLOCK_ROWS]


class MappedParts:
    """Arrays [rows, w] of consecutive parts, addressed as one [n, w] by row number."""

    def __init__(self, arrays: list[NDArray[Any]]) -> None:
        self.arrays = [np.asarray(array) for array in arrays]  # indexing a memmap itself is slow
        self.first_rows = np.cumsum([0, *map(len, arrays)])

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.concatenate(self.arrays, dtype=dtype)

    def __getitem__(self, row: int) -> NDArray[Any]:
        part = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        return self.arrays[part][row - self.first_rows[part]]

    def take(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """The given rows [m, w], read in their order on disk."""
        found = np.empty((len(rows), self.arrays[0].shape[1]), dtype=self.arrays[0].dtype)
        order = np.argsort(rows)
        bounds = np.searchsorted(rows[order], self.first_rows)
        for part in np.flatnonzero(np.diff(bounds)):
            mine = order[bounds[part] : bounds[part + 1]]
            found[mine] = self.arrays[part][rows[mine] - self.first_rows[part]]
        return found


def map_parts(workspace: Workspace, stage: str, parts: int, kind: str = "") -> MappedParts:
    """The arrays `part-00000{kind}.npy`, … of a finished stage; remote ones from local copies."""
    _allow_open_files(parts)
    names = [part_name(part) for part in range(parts)]
    paths = [f"{stage}/{name}{kind}.npy" for name in names]
    if workspace.storage.is_local:
        return MappedParts([workspace.storage.map_array(path) for path in paths])
    held = [workspace.stage(stage).receipt(name).file(f"{name}{kind}.npy") for name in names]
    what = workspace.storage.location(stage)
    return MappedParts(workspace.storage.map_copies(dict(zip(paths, held, strict=True)), what))


def _allow_open_files(more: int) -> None:
    """Raise the process's limit of open files as far as it may: a mapping keeps its file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + more
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))


def map_neighbors(workspace: Workspace, stage: str) -> MappedParts:
    """Neighbor rows [n, k] of a finished graph."""
    return map_parts(workspace, stage, workspace.stage(stage).require()["parts"], ".neighbors")


def map_similarities(workspace: Workspace, stage: str) -> MappedParts:
    """Similarities [n, k] of the neighbors of a finished graph."""
    return map_parts(workspace, stage, workspace.stage(stage).require()["parts"], ".similarities")
