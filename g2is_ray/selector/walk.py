"""The gradient walk: from each component's anchor through the kNN graph.

Source: G2IS (arXiv 2502.11062), section 3, as its authors' code does it. Every rule beyond the
paper is an option of `WalkSettings`, and off in the preset `paper`.

The pool is never in memory. One pass gives c·x of every row with every component; after that only
candidates are read. In memory are 4 bytes per row and component, about 40 bytes per row for the
current component, and the members of the path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from g2is_ray.config import WalkSettings
from g2is_ray.features.rows import Rows
from g2is_ray.selector.interface import Neighbors
from g2is_ray.selector.picks import PassedOver, Pick

_BLOCK_NUMBERS = 2**18  # float32 numbers of the largest block: 1 MiB, which stays in the cache


class Walk:
    """Picks rows for one component after another; no row is picked twice.

    Args:
        x: pool gradients.
        neighbors: the pool's kNN graph.
        products: for each component, its dot products [n] with the rows.
        valid: which rows [n] may be picked.
        settings: the rules of the walk.
        first_block: candidates looked at first; doubled from block to block.
        first_members: members of the path compared with first; doubled from chunk to chunk.
    """

    def __init__(
        self,
        x: Rows,
        neighbors: Neighbors,
        products: Sequence[NDArray[np.float32]],
        valid: NDArray[np.bool_],
        settings: WalkSettings,
        *,
        first_block: int = 16,
        first_members: int = 32,
    ) -> None:
        self._x, self._neighbors, self._products = x, neighbors, products
        self._free = valid.copy()  # not yet picked, and valid
        self._settings = settings
        self._first_block, self._first_members = first_block, first_members
        self._rank = 0

    def repeat(self, picks: Iterable[Pick]) -> None:
        """Take the picks of an earlier walk as made, instead of searching for them."""
        for pick in picks:
            self._free[pick.row] = False
            self._rank = pick.rank + 1

    def component(
        self,
        index: int,
        budget: int,
        cost: Callable[[int], int] = lambda row: 1,
        within: NDArray[np.bool_] | None = None,
    ) -> Iterator[Pick]:
        """Make picks for the component, in order, until the next pick exceeds the budget.

        Args:
            budget: amount to spend.
            cost: cost of a row; by default `budget` is a number of picks.
            within: rows [n] to walk among; None stands for all rows.
        """
        products, free = self._products[index], self._free.copy()
        if within is not None:
            free &= within
        order: NDArray[np.integer] = np.argsort(-products, kind="stable")
        path = None
        while budget > 0:
            step = "neighbor"
            found = path.next_neighbor(self._neighbors) if path else None
            passed = path.passed_over if path else PassedOver()
            if path and found is None:
                step, found = "fallback", path.fallback()
            if found is None:
                if path and self._settings.on_exhausted == "stop":
                    return
                order = order[free[order]]
                if not len(order):
                    return
                path = _Path(
                    self._x,
                    products,
                    order,
                    free,
                    self._settings.delta,
                    first_block=self._first_block,
                    first_members=self._first_members,
                )
                step, found = "anchor", path.anchor()
            row, similarity = found
            budget -= cost(row)
            if budget < 0:
                return  # the row stays free for another component, which may have room for it
            rank, why = self._rank, passed._asdict()
            self._rank += 1
            self._free[row] = False
            yield Pick(rank=rank, row=row, component=index, step=step, similarity=similarity, **why)


Found = tuple[int, float]  # a row, and its similarity as in `Pick`


class _Path:
    """The examples picked since the last anchor (S), and how each candidate compares with them.

    S only grows, so a dot product of a candidate with a member never changes:

    1. Each product is formed once. A row stores how many members it was compared with, from the
       first member on, and the sum of those products.
    2. A row that conflicts with a member is never looked at again.
    3. A row that a fallback looked at, and that does not conflict but would not have kept the path
       consistent, waits: it comes before all rows that no fallback has looked at.

    Args:
        products: dot products [n] of the component with the rows, c·x.
        order: rows that may be picked, in descending c·x.
        free: rows [n] that are not picked; the path marks its own picks here.
        delta: share of the path's |cos| with the component that a step must keep.
    """

    def __init__(
        self,
        x: Rows,
        products: NDArray[np.float32],
        order: NDArray[np.integer],
        free: NDArray[np.bool_],
        delta: float,
        *,
        first_block: int,
        first_members: int,
    ) -> None:
        self._x, self._products, self._order, self._free = x, products, order, free
        self._delta, self._first_block, self._first_members = delta, first_block, first_members
        self._members = np.empty((first_members, x.dimensions), dtype=np.float32)
        self._length = 0
        self._last = -1
        self._squared_norm = 0.0  # |sum of S|^2
        self._sum_product = 0.0  # (sum of S) · c
        self._compared = np.zeros(len(x), dtype=np.int32)  # members compared with
        self._sums = np.zeros(len(x))  # of the dot products with those
        self._latest = np.zeros(len(x), dtype=np.float32)  # dot product with the last of those
        self._conflicts = np.zeros(len(x), dtype=bool)
        self._waiting = order[:0]
        self._ahead = 0  # position in `order` of the first row that no fallback has looked at
        self._largest = max(first_block, _BLOCK_NUMBERS // x.dimensions)  # block
        self.passed_over = PassedOver()  # by the last `next_neighbor`

    def anchor(self) -> Found:
        """Pick the row with the largest c·x."""
        row = self._order[:1]
        self._add(int(row[0]), self._x.take(row)[0])
        return self._last, float(self._products[self._last])

    def next_neighbor(self, neighbors: Neighbors) -> Found | None:
        """Pick the neighbor most similar to the last pick, of those that qualify."""
        near = neighbors[self._last]
        near = near[near >= 0]
        near = near[self._free[near]]
        picked = self._pick_first(self._open(near))
        if picked:
            near = near[: int(np.argmax(near == self._last))]
        conflicting = int(self._conflicts[near].sum())
        self.passed_over = PassedOver(conflicting, len(near) - conflicting)
        return (self._last, float(self._latest[self._last])) if picked else None

    def fallback(self) -> Found | None:
        """Pick the row with the largest c·x, of those that qualify."""
        self._waiting = self._open(self._waiting)
        picked, size = self._pick_first(self._waiting), self._first_block
        while not picked and self._ahead < len(self._order):
            block = self._open(self._order[self._ahead : self._ahead + size])
            self._ahead += size
            picked, size = self._pick_from(block), min(2 * size, self._largest)
            self._waiting = np.concatenate([self._waiting, self._open(block)])
        return (self._last, float(self._products[self._last])) if picked else None

    def _open(self, rows: NDArray[np.integer]) -> NDArray[np.integer]:
        return rows[self._free[rows] & ~self._conflicts[rows]]

    def _pick_first(self, candidates: NDArray[np.integer]) -> bool:
        start, size = 0, self._first_block
        while start < len(candidates):
            if self._pick_from(candidates[start : start + size]):
                return True
            start, size = start + size, min(2 * size, self._largest)
        return False

    def _pick_from(self, rows: NDArray[np.integer]) -> bool:
        """Pick the first of `rows` that qualifies, if there is one."""
        x_bd = self._x.take(rows)
        self._compare(rows, x_bd)
        accepted = self._accepted(rows, x_bd)
        if not len(accepted):
            return False
        self._add(int(rows[accepted[0]]), x_bd[accepted[0]])
        return True

    def _compare(self, rows: NDArray[np.integer], x_bd: NDArray[np.float32]) -> None:
        """Compare rows with the members they were not compared with yet, up to a conflict."""
        compared = self._compared[rows]
        for start in np.unique(compared):
            here = np.flatnonzero(compared == start)
            size = self._first_members
            while start < self._length and len(here):
                end = min(start + size, self._length)
                dots_bs = dot_products(x_bd[here], self._members[start:end])
                agrees = (dots_bs >= 0).all(axis=1)
                self._conflicts[rows[here[~agrees]]] = True
                here, dots_bs = here[agrees], dots_bs[agrees]
                self._sums[rows[here]] += dots_bs.sum(axis=1, dtype=np.float64)
                self._latest[rows[here]] = dots_bs[:, -1]
                start, size = end, 2 * size
            self._compared[rows[here]] = self._length

    def _accepted(
        self, rows: NDArray[np.integer], x_bd: NDArray[np.float32]
    ) -> NDArray[np.integer]:
        """Indexes of the candidates that conflict with no member and keep the path consistent."""
        here = np.flatnonzero(~self._conflicts[rows])
        rows, x_bd = rows[here], x_bd[here]
        norms = np.einsum("bd,bd->b", x_bd, x_bd, dtype=np.float64)
        squared = self._squared_norm + 2 * self._sums[rows] + norms
        product = self._sum_product + self._products[rows].astype(np.float64)
        now = _cosine(self._sum_product, self._squared_norm)
        return here[_cosine(product, squared) >= self._delta * now]

    def _add(self, row: int, x_d: NDArray[np.float32]) -> None:
        if self._length == len(self._members):
            self._members = np.concatenate([self._members, np.empty_like(self._members)])
        self._members[self._length] = x_d
        self._length += 1
        self._squared_norm += 2 * float(self._sums[row]) + float(x_d @ x_d)
        self._sum_product += float(self._products[row])
        self._free[row] = False
        self._last = row


def dot_products(x_bd: NDArray[np.float32], members_sd: NDArray[np.float32]) -> NDArray[np.float32]:
    """All dot products [b, s] of candidates with members; no other function forms them."""
    return x_bd @ members_sd.T


def _cosine(product: NDArray[np.float64] | float, squared_norm: NDArray[np.float64] | float):  # type: ignore[no-untyped-def]
    """|cos| of a sum with a unit vector; zero for a sum that cancels out."""
    return np.abs(product) / np.sqrt(np.maximum(squared_norm, np.finfo(np.float64).tiny))
