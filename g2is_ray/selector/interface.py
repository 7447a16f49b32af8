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

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from g2is_ray.selector.walk import Neighbors

Choice = tuple[int, float]
"""A row of the pool, and the score it is picked for; NaN where there is none."""

Reads = Literal["gradients", "embeddings", "graph", "texts", "tokens", "seed"]
"""`gradients` are the features in force, which may be embeddings; `embeddings` are those whatever
is in force, and never centered."""

_FIRST_SORTED = 1024  # rows sorted at first; four times as many each time that more are asked for


@dataclass(frozen=True, kw_only=True)
class Target:
    """The rows that are selected for; of a selector that reads features, those that have one.

    What a selector does not read, it is not given.
    """

    features: NDArray[np.float32]  # [m, d], unit gradients or embeddings
    texts: Sequence[str]  # [m], all turns of the conversation
    subtasks: Sequence[str]  # [m], from a field of the row; all alike where there is none

    def subtask_means(self) -> NDArray[np.float32]:
        """Mean features [s, d] of the subtasks, in alphabetical order."""
        names = np.array(self.subtasks)
        means = [self.features[names == name].mean(axis=0) for name in np.unique(names)]
        return np.stack(means)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The rows that are selected from. What a selector does not read, it is not given."""

    free: NDArray[np.bool_]  # [n], rows that may be picked
    texts: Callable[[], Iterator[str]] = lambda: iter(())  # of all rows, in order
    neighbors: Neighbors = field(default_factory=lambda: np.empty((0, 0), dtype=np.int32))
    similarities: ArrayLike = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    """Of the neighbors [n, k]; `np.asarray` reads all of them, as it does of neighbors."""
    tokens: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Supervised tokens [n] of each row."""
    seed: int = 0


class Selector(ABC):
    """Puts the rows of a pool into an order of preference for a target.

    The same input must give the same order. A selector is built without arguments, once for a
    selection.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"gradients"})
    """What decides the order besides the code. All of it is in the selection's fingerprint."""

    step: ClassVar[str] = "score"
    """What a pick is called in selection.jsonl and in the report."""

    def directions(self, target: Target) -> NDArray[np.floating]:
        """Directions [k, d] that the features of all rows are to be multiplied with.

        One pass over the pool serves all selectors. The products take 4 bytes per direction and
        row of the pool.
        """
        return np.empty((0, target.features.shape[1]), dtype=np.float32)

    @abstractmethod
    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        """Free rows, each once and best first; asked for only as far as the budget goes.

        Args:
            products: dot products [k, n] of the directions with the rows.
        """


def descending(scores: NDArray[np.floating], free: NDArray[np.bool_]) -> Iterator[int]:
    """Free rows in descending score [n], of equal ones the earlier first.

    Rows are sorted only as far as they are asked for. One that is no longer free by then may
    still be among them.
    """
    bound, size = np.inf, _FIRST_SORTED
    while len(rows := np.flatnonzero(free & (scores < bound))):
        bound = -np.inf
        if len(rows) > size:
            bound = np.partition(scores[rows], -size)[-size]
            rows = rows[scores[rows] >= bound]
        yield from rows[np.argsort(-scores[rows], kind="stable")].tolist()
        size *= 4


def best_first(scores: NDArray[np.floating], free: NDArray[np.bool_]) -> Iterator[Choice]:
    """Free rows in descending score [n], of equal ones the earlier first."""
    return ((row, float(scores[row])) for row in descending(scores, free))


def round_robin(scores: NDArray[np.floating], free: NDArray[np.bool_]) -> Iterator[Choice]:
    """In turn for each row of scores [m, n], the row of the pool that is best and still free."""
    free = free.copy()
    orders = [descending(own, free) for own in scores]
    while True:
        for own, order in zip(scores, orders, strict=True):
            row = next((row for row in order if free[row]), None)
            if row is None:  # for none of the others either
                return
            free[row] = False
            yield row, float(own[row])
