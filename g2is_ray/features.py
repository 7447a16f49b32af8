"""Gradients on disk: unit rows in float16, their norms, and the sum of each part.

From these `normalize(norm * row - mean)` can be formed when reading, so one pass over the
pool serves both the published and the centered method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2is_ray.arrays import normalize
from g2is_ray.workspace import Workspace, array_bytes, part_name


def gradient_files(part: int, projected: NDArray[np.float32]) -> dict[str, bytes]:
    """Files of one part, by name, for its projected gradients [rows, d]."""
    norms = np.linalg.norm(projected, axis=1)
    unit = normalize(projected).astype(np.float16)
    name = part_name(part)
    return {
        f"{name}.npy": array_bytes(unit),
        f"{name}.norms.npy": array_bytes(norms),
        f"{name}.sum.npy": array_bytes(norms.astype(np.float64) @ unit.astype(np.float64)),
    }


class GradientSet:
    """Reads the gradients of a finished stage as unit rows, centered or not."""

    def __init__(self, workspace: Workspace, stage: str, *, center: bool = False) -> None:
        self._workspace = workspace
        self.stage = stage
        receipt = workspace.require(stage, "gradients")
        self.rows: int = receipt["rows"]
        self.parts: int = receipt["parts"]
        self.invalid: int = receipt["invalid"]
        self._norms = [self._array(part, ".norms") for part in range(self.parts)]
        self.part_rows = [len(norms) for norms in self._norms]
        self.first_rows = np.concatenate([[0], np.cumsum(self.part_rows)])
        self._mean = self._pool_mean() if center else None

    @property
    def dimensions(self) -> int:
        return int(self._array(0, ".sum").shape[0])

    def valid_rows(self, parts: Sequence[int] | None = None) -> NDArray[np.int64]:
        """Numbers of the rows, of all parts or of some, that have a usable gradient."""
        chosen = range(self.parts) if parts is None else parts
        return np.concatenate(
            [np.flatnonzero(self._norms[part] > 0) + self.first_rows[part] for part in chosen]
        )

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit rows [n, d] with these numbers, in the order given."""
        found = np.zeros((len(rows), self.dimensions), dtype=np.float32)
        part_of = np.searchsorted(self.first_rows, rows, side="right") - 1
        for part in np.unique(part_of):
            which = part_of == part
            found[which] = self.read(int(part))[rows[which] - self.first_rows[part]]
        return found

    def _array(self, part: int, kind: str = "") -> NDArray[Any]:
        return self._workspace.read_array(f"{self.stage}/{part_name(part)}{kind}.npy")

    def _pool_mean(self) -> NDArray[np.float64]:
        total = sum(self._array(part, ".sum") for part in range(self.parts))
        return np.asarray(total / max(1, self.rows - self.invalid))

    def read(self, part: int) -> NDArray[np.float32]:
        """Unit rows [rows, d] of a part; zero where the gradient is invalid."""
        unit = self._array(part).astype(np.float32)
        if self._mean is None:
            return normalize(unit)
        return normalize(unit * self._array(part, ".norms")[:, None], self._mean)

    def read_all(self) -> NDArray[np.float32]:
        """Unit rows [n, d] of every part, in order."""
        return np.concatenate([self.read(part) for part in range(self.parts)])
