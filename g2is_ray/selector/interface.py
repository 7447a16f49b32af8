"""The public interface of selectors, and the orders in which they may pick.

A selector of your own is a class in a file of your own, named on the command line:

    g2is run --baselines random my_file.py:Nearest ...

>>> import numpy as np
>>> class Nearest(Selector):
...     '''Rows whose gradient is closest to that of any one target row.'''
...
...     def directions(self, target):
...         return target.features
...
...     def picks(self, pool, target, products):
...         return best_first(products.max(axis=0), pool.free)
>>> target = Target(
...     features=np.array([[1.0, 0.0], [0.0, 1.0]], np.float32),
...     texts=["one", "two"],
...     subtasks=["", ""],
... )
>>> gradients = np.array([[0.6, 0.8], [-1.0, 0.0], [1.0, 0.0]], np.float32)
>>> selector = Nearest()
>>> products = selector.directions(target) @ gradients.T
>>> pool = Pool(free=np.ones(3, bool), texts=lambda: iter(["a", "b", "c"]))
>>> [row for row, _ in selector.picks(pool, target, products)]
[2, 0, 1]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from g2is_ray.errors import InputError
from g2is_ray.features.rows import Rows
from g2is_ray.selector.budget import Budget, split_budget
from g2is_ray.selector.picks import Pick, Pieces, Selection

Choice = tuple[int, float]
"""A row of the pool, and the score it is picked for; NaN where there is none."""

Reads = Literal["gradients", "embeddings", "graph", "texts", "tokens", "seed"]
"""`gradients` are the features in force, which may be embeddings; `embeddings` are those whatever
is in force, and never centered."""


class Neighbors(Protocol):
    """A kNN graph [n, k]."""

    def __getitem__(self, row: int) -> NDArray[np.integer]:
        """Neighbors of a row in descending similarity; negative entries are ignored."""
        ...


@dataclass(frozen=True, kw_only=True)
class Target:
    """The rows that are selected for. A selector is given only the fields that it reads.

    A selector that reads features is given the rows that have usable features.
    """

    features: NDArray[np.float32]  # [m, d], unit gradients or embeddings
    texts: Sequence[str]  # [m], all turns of the conversation
    subtasks: Sequence[str]  # [m], from a field of the row; equal for all rows without that field
    name: str = ""
    weight: float = 1.0
    """Share of a joint budget, relative to the weights of the other targets."""

    def subtask_means(self) -> NDArray[np.float32]:
        """Mean features [s, d] of the subtasks, in alphabetical order."""
        names = np.array(self.subtasks)
        means = [self.features[names == name].mean(axis=0) for name in np.unique(names)]
        return np.stack(means)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The rows that are selected from. A selector is given only the fields that it reads."""

    free: NDArray[np.bool_]  # [n], rows that may be picked
    features: Rows | None = None
    """Unit gradients or embeddings [n, d], read from disk as they are asked for."""
    texts: Callable[[], Iterator[str]] = lambda: iter(())  # of all rows, in order
    neighbors: Neighbors = field(default_factory=lambda: np.empty((0, 0), dtype=np.int32))
    similarities: ArrayLike = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    """Similarities [n, k] of the neighbors. `np.asarray` reads the whole array from disk."""
    tokens: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Supervised tokens [n] of each row."""
    seed: int = 0


class Selector:
    """Picks rows of a pool for one or more targets, within a budget.

    A subclass defines `picks`, an order of preference for one target; or it overrides `select`, if
    it splits the budget in its own way. The same input must give the same picks. A selector is
    built once for each selection: without arguments, or with its settings if it has a
    `settings_class`.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"gradients"})
    """What decides the picks besides the code. The selection's fingerprint covers all of it."""

    step: ClassVar[str] = "score"
    """Name of a pick's step in selection.jsonl and in the report."""

    settings_class: ClassVar[type[Any] | None] = None
    """Dataclass of the settings that the selector is built with."""

    fills_budget: ClassVar[bool] = True
    """The selector spends its whole budget. A baseline that does so gets as much as the selection
    spent; one that may stop early gets the budget itself."""

    def directions(self, target: Target) -> NDArray[np.floating]:
        """Directions [k, d] to multiply the features of all rows with.

        One pass over the pool serves all selectors. The products take 4 bytes per direction and
        row of the pool.
        """
        return np.empty((0, target.features.shape[1]), dtype=np.float32)

    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        """Free rows, each once and best first; the budget decides how many are drawn.

        Args:
            products: dot products [k, n] of the directions with the rows.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither picks nor select")

    def select(
        self,
        pool: Pool,
        targets: Sequence[Target],
        products: Sequence[NDArray[np.float32]],
        budget: Budget,
        pieces: Pieces = Pieces(),  # noqa: B008  it is immutable
    ) -> Selection:
        """Pick for one target after another, within each target's share of the budget.

        The next target gets what a target has left.

        Args:
            products: for each target, dot products [k, n] of its directions with the rows.
            pieces: for selectors that work in pieces.

        Raises:
            InputError: `picks` yields a row that may not be picked.
        """
        weights = np.array([target.weight for target in targets])
        rooms = np.cumsum(split_budget(budget.amount, weights / weights.sum())).tolist()
        picks: list[Pick] = []
        free, spent = pool.free.copy(), 0
        for target, own_products, room in zip(targets, products, rooms, strict=True):
            choices = iter(self.picks(replace(pool, free=free.copy()), target, own_products))
            while spent < room and (choice := next(choices, None)):
                row, score = choice
                if not (0 <= row < len(free) and free[row]):
                    raise InputError(
                        f"{type(self).__name__} picked row {row}, which is picked already or not "
                        "free: picks may yield each free row once"
                    )
                if spent + budget.cost(row) > room:
                    break
                free[row] = False
                spent += budget.cost(row)
                picks.append(
                    Pick(
                        rank=len(picks),
                        row=int(row),
                        component=None,
                        step=self.step,
                        similarity=None if math.isnan(score) else float(score),
                    )
                )
        return Selection(picks=picks)


def descending(
    scores: NDArray[np.floating], free: NDArray[np.bool_], first_sorted: int = 1024
) -> Iterator[int]:
    """Free rows in descending score [n], the earlier row first among equals.

    Rows are sorted only as far as they are drawn. A row that is picked after its batch was sorted
    may still be among them.

    Args:
        first_sorted: rows sorted at first; each further batch is four times as large.
    """
    bound, size = np.inf, first_sorted
    while len(rows := np.flatnonzero(free & (scores < bound))):
        bound = -np.inf
        if len(rows) > size:
            bound = np.partition(scores[rows], -size)[-size]
            rows = rows[scores[rows] >= bound]
        yield from rows[np.argsort(-scores[rows], kind="stable")].tolist()
        size *= 4


def best_first(scores: NDArray[np.floating], free: NDArray[np.bool_]) -> Iterator[Choice]:
    """Free rows in descending score [n], the earlier row first among equals."""
    return ((row, float(scores[row])) for row in descending(scores, free))


def round_robin(scores: NDArray[np.floating], free: NDArray[np.bool_]) -> Iterator[Choice]:
    """For each row of scores [m, n] in turn, the best row of the pool that is still free."""
    free = free.copy()
    orders = [descending(own, free) for own in scores]
    while True:
        for own, order in zip(scores, orders, strict=True):
            row = next((row for row in order if free[row]), None)
            if row is None:  # no row of the pool is free
                return
            free[row] = False
            yield row, float(own[row])
