"""The gradient walk: from each component's anchor through the kNN graph.

Source: G2IS (arXiv 2502.11062), section 3, as its authors' code does it. `restart` goes
beyond it: a budget that conflicts would leave unspent is spent from a new anchor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Step = Literal["anchor", "neighbor", "fallback"]

_FIRST_BLOCK = 64  # candidates a fallback looks at first; doubled from block to block


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """One selected row and why it was taken."""

    rank: int
    row: int
    component: int
    step: Step
    similarity: float  # cosine: of a neighbor to the pick before it, otherwise to the component


class _Path:
    """The examples picked since the last anchor (S), all against one component."""

    def __init__(self, component: NDArray[np.float32], dimensions: int, capacity: int) -> None:
        self.component = component
        self.members = np.empty((capacity, dimensions), dtype=np.float32)  # [picks, d]
        self.length = 0
        self.squared_norm = 0.0  # |sum of S|^2
        self.along = 0.0  # (sum of S) . component

    def add(self, x_d: NDArray[np.float32]) -> None:
        past = self.members[: self.length] @ x_d
        self.squared_norm += float(2 * past.sum(dtype=np.float64)) + float(x_d @ x_d)
        self.along += float(x_d @ self.component)
        self.members[self.length] = x_d
        self.length += 1

    def accepts(self, x_bd: NDArray[np.float32], delta: float) -> NDArray[np.bool_]:
        """Which candidates [b, d] conflict with no member and keep the path consistent."""
        dots_bs = x_bd @ self.members[: self.length].T
        no_conflict = (dots_bs >= 0).all(axis=1)
        norms = np.einsum("bd,bd->b", x_bd, x_bd, dtype=np.float64)
        squared = self.squared_norm + 2 * dots_bs.sum(axis=1, dtype=np.float64) + norms
        along = self.along + (x_bd @ self.component).astype(np.float64)
        now = _cosine(self.along, self.squared_norm)
        return no_conflict & (_cosine(along, squared) >= delta * now)


def _cosine(along: NDArray[np.float64] | float, squared_norm: NDArray[np.float64] | float):  # type: ignore[no-untyped-def]
    """|cos| of a sum with a unit vector; zero for a sum that cancels out."""
    return np.abs(along) / np.sqrt(np.maximum(squared_norm, np.finfo(np.float64).tiny))


def walk(
    x: NDArray[np.float32],
    neighbors: NDArray[np.integer],
    components: NDArray[np.floating],
    budgets: Sequence[int],
    *,
    delta: float,
    on_exhausted: Literal["stop", "restart"],
) -> Iterator[Pick]:
    """Pick rows for each component in turn; no row is picked twice.

    Args:
        x: pool gradients [n, d], unit rows; a zero row is invalid and is never picked.
        neighbors: [n, k] rows of `x` in descending similarity; negative entries are ignored.
        components: [c, d], unit rows.
        budgets: picks for each component.
        delta: share of the path's |cos| with the component that a step must keep.
        on_exhausted: end the component early, or go on from its next anchor.

    Yields:
        Picks in the order they are made.
    """
    free = np.linalg.norm(x, axis=1) > 0  # not yet picked, and valid
    rank = 0
    for index, (component, budget) in enumerate(zip(components, budgets, strict=True)):
        for step, row, similarity in _walk_component(
            x, neighbors, component.astype(np.float32), budget, free, delta, on_exhausted
        ):
            yield Pick(rank=rank, row=row, component=index, step=step, similarity=similarity)
            rank += 1


def _walk_component(
    x: NDArray[np.float32],
    neighbors: NDArray[np.integer],
    component: NDArray[np.float32],
    budget: int,
    free: NDArray[np.bool_],
    delta: float,
    on_exhausted: Literal["stop", "restart"],
) -> Iterator[tuple[Step, int, float]]:
    along = x @ component
    order = np.argsort(-along, kind="stable")
    path = _Path(component, x.shape[1], budget)
    last = -1
    for picked in range(budget):
        row: int = -1
        step: Step = "anchor"
        if path.length:
            near = neighbors[last]
            near = near[near >= 0]
            row, step = _first(x, near[free[near]], path, delta), "neighbor"
            if row < 0:
                row, step = _first(x, order[free[order]], path, delta), "fallback"
        if row < 0:
            if path.length and on_exhausted == "stop":
                return
            left = order[free[order]]
            if not len(left):
                return
            path = _Path(component, x.shape[1], budget - picked)
            row, step = int(left[0]), "anchor"
        similarity = float(x[last] @ x[row]) if step == "neighbor" else float(along[row])
        path.add(x[row])
        free[row] = False
        last = row
        yield step, row, similarity


def _first(
    x: NDArray[np.float32], candidates: NDArray[np.integer], path: _Path, delta: float
) -> int:
    """The first of `candidates` that the path accepts, or -1."""
    start, size = 0, _FIRST_BLOCK
    while start < len(candidates):
        block = candidates[start : start + size]
        accepted = np.flatnonzero(path.accepts(x[block], delta))
        if len(accepted):
            return int(block[accepted[0]])
        start, size = start + size, size * 2
    return -1
