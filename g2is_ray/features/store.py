"""Features on disk: unit rows in float16, their norms, and the sum of each part.

A row's feature is its gradient or its embedding. From these files `normalize(norm * row - mean)`
can be formed when reading, so one pass over the pool serves both the published and the centered
method.

The mean is that of all valid rows of the pool, formed from the sums of its parts. A centered graph
keeps the mean that it was begun with: another mean would change every edge. So once the pool has
grown, what reads the graph subtracts the graph's mean, and what reads features alone subtracts the
mean of the pool as it is now.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2is_ray.config import Features
from g2is_ray.features.rows import BLOCK_ROWS, MappedParts, map_parts
from g2is_ray.features.vectors import normalize
from g2is_ray.workspace.layout import graph_stage
from g2is_ray.workspace.storage import array_bytes
from g2is_ray.workspace.workspace import STAGE_RECEIPT, Workspace, part_name

MEAN = "mean.npy"  # file in a centered graph's folder: the mean that the graph subtracts


def feature_files(part: int, features: NDArray[np.float32]) -> dict[str, bytes]:
    """Files of one part, by name, for its features [rows, d]; zeros where one is invalid."""
    norms = np.linalg.norm(features, axis=1)
    unit = normalize(features).astype(np.float16)
    name = part_name(part)
    return {
        f"{name}.npy": array_bytes(unit),
        f"{name}.norms.npy": array_bytes(norms),
        f"{name}.sum.npy": array_bytes(norms.astype(np.float64) @ unit.astype(np.float64)),
    }


class FeatureSet:
    """The features of a finished stage as unit rows, the pool's mean subtracted or not.

    `take` and `blocks` (see `rows.Rows`) map the part files and form rows as they are asked
    for; only norms and mean are held.

    Args:
        center: subtract the mean of the pool, whose features these must be.
        of_graph: subtract the mean of the centered graph, if there is one, in place of the pool's.
    """

    def __init__(
        self, workspace: Workspace, stage: str, *, center: bool = False, of_graph: bool = False
    ) -> None:
        self._workspace = workspace
        self.stage = stage
        self.kind: Features = "embeddings" if stage.endswith("embeddings") else "gradients"
        receipt = workspace.stage(stage).require()
        self.rows: int = receipt["rows"]
        self.parts: int = receipt["parts"]
        self.invalid: int = receipt["invalid"]
        norms = [self._array(part, ".norms") for part in range(self.parts)]
        self.part_rows = [len(each) for each in norms]
        if sum(self.part_rows) != self.rows:
            raise workspace.storage.damaged(f"{stage}/{STAGE_RECEIPT}.json")
        self.first_rows = np.cumsum([0, *self.part_rows])
        self._norms = np.concatenate(norms)
        self.mean: NDArray[np.float64] | None = None  # [d], subtracted from all rows
        if center:
            kept = self.graph_mean() if of_graph else None
            self.mean = self.pool_mean() if kept is None else kept

    def _array(self, part: int, kind: str = "") -> NDArray[Any]:
        return self._workspace.storage.read_array(f"{self.stage}/{part_name(part)}{kind}.npy")

    def graph_mean(self) -> NDArray[np.float64] | None:
        """Mean feature [d] that the centered graph was begun with, if there is such a graph."""
        path = f"{graph_stage(True, self.kind)}/{MEAN}"
        return (
            self._workspace.storage.read_array(path)
            if self._workspace.storage.exists(path)
            else None
        )

    def pool_mean(self) -> NDArray[np.float64]:
        """Mean feature [d] of all valid rows of the stage, which is the pool's."""
        total = sum(self._array(part, ".sum") for part in range(self.parts))
        return np.asarray(total / max(1, self.rows - self.invalid))

    @cached_property
    def _mapped(self) -> MappedParts:
        return map_parts(self._workspace, self.stage, self.parts)

    def _formed(
        self, stored: NDArray[np.float16], norms: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        import torch

        # torch converts float16 several times faster than NumPy; a copy, as mapped files are
        # read-only.
        unit = torch.from_numpy(np.array(stored)).float().numpy()
        if self.mean is not None:
            unit *= norms[:, None]
        return normalize(unit, self.mean)

    @cached_property
    def dimensions(self) -> int:
        return len(self._array(0, ".sum"))

    def __len__(self) -> int:
        return self.rows

    def valid_rows(self, parts: Sequence[int] | None = None) -> NDArray[np.int64]:
        """Numbers of the rows, of all parts or of some, that have a usable feature."""
        chosen = range(self.parts) if parts is None else parts
        bounds = [self.first_rows[part : part + 2] for part in chosen]
        return np.concatenate(
            [first + np.flatnonzero(self._norms[first:stop] > 0) for first, stop in bounds]
        )

    def read(self, part: int) -> NDArray[np.float32]:
        """Unit rows [rows, d] of a part; zero where the feature is invalid."""
        first, stop = self.first_rows[part : part + 2]
        return self._formed(self._array(part), self._norms[first:stop])

    def read_all(self) -> NDArray[np.float32]:
        """Unit rows [n, d] of every part, in order."""
        return np.concatenate([self.read(part) for part in range(self.parts)])

    def of_target(self, name: str) -> NDArray[np.float32]:
        """Unit rows [m, d] of a target, to compare those of this pool with.

        Embeddings of target and pool are alike, so they are centered alike. A target's gradients
        lack the momentum that the pool's share, so the pool's mean is none of theirs.
        """
        own = FeatureSet(self._workspace, f"targets/{name}/{self.kind}")
        if self.kind == "embeddings":
            own.mean = self.mean
        return own.read_all()

    def take(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Unit rows [m, d] in the order given."""
        return self._formed(self._mapped.take(rows), self._norms[rows])

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """First row and unit rows [b, d] of one block after another, in order."""
        for begin, stored in zip(self._mapped.first_rows, self._mapped.arrays, strict=False):
            for at in range(0, len(stored), BLOCK_ROWS):
                block = stored[at : at + BLOCK_ROWS]
                first = int(begin) + at
                yield first, self._formed(block, self._norms[first : first + len(block)])
