"""Gradients on disk: unit rows in float16, their norms, and the sum of each part.

From these `normalize(norm * row - mean)` can be formed when reading, so one pass over the
pool serves both the published and the centered method.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2is_ray.arrays import normalize
from g2is_ray.rows import BLOCK_ROWS, MappedParts, map_parts
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
    """The gradients of a finished stage as unit rows, centered or not.

    `take` and `blocks` (see `rows.Rows`) map the part files and form rows as they are asked
    for; only norms and mean are held.
    """

    def __init__(self, workspace: Workspace, stage: str, *, center: bool = False) -> None:
        self._workspace = workspace
        self.stage = stage
        receipt = workspace.require(stage, "gradients")
        self.rows: int = receipt["rows"]
        self.parts: int = receipt["parts"]
        self.invalid: int = receipt["invalid"]
        self._mean = self._pool_mean() if center else None

    def _array(self, part: int, kind: str = "") -> NDArray[Any]:
        return self._workspace.read_array(f"{self.stage}/{part_name(part)}{kind}.npy")

    def _pool_mean(self) -> NDArray[np.float64]:
        total = sum(self._array(part, ".sum") for part in range(self.parts))
        return np.asarray(total / max(1, self.rows - self.invalid))

    def read(self, part: int) -> NDArray[np.float32]:
        """Unit rows [rows, d] of a part; zero where the gradient is invalid."""
        norms = None if self._mean is None else self._array(part, ".norms")
        return self._formed(self._array(part), norms)

    def read_all(self) -> NDArray[np.float32]:
        """Unit rows [n, d] of every part, in order."""
        return np.concatenate([self.read(part) for part in range(self.parts)])

    def _formed(
        self, stored: NDArray[np.float16], norms: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        unit = stored.astype(np.float32)
        if norms is not None:
            unit *= norms[:, None]
        return normalize(unit, self._mean)

    # ---- without holding the pool ------------------------------------------------

    @cached_property
    def _mapped(self) -> MappedParts:
        return map_parts(self._workspace, self.stage, self.parts)

    @cached_property
    def _norms(self) -> NDArray[np.float32] | None:
        if self._mean is None:
            return None
        return np.concatenate([self._array(part, ".norms") for part in range(self.parts)])

    @property
    def dimensions(self) -> int:
        return int(self._mapped.arrays[0].shape[1])

    def __len__(self) -> int:
        return self.rows

    def take(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Unit rows [m, d] in the order given."""
        return self._formed(
            self._mapped.take(rows), None if self._norms is None else self._norms[rows]
        )

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """First row and unit rows [b, d] of one block after another, in order."""
        for begin, stored in zip(self._mapped.first_rows, self._mapped.arrays, strict=False):
            for at in range(0, len(stored), BLOCK_ROWS):
                block = stored[at : at + BLOCK_ROWS]
                first = int(begin) + at
                here = slice(first, first + len(block))
                yield first, self._formed(block, None if self._norms is None else self._norms[here])
