"""Selectors that also go by the kNN graph: by what is like a row, not by the row alone."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2is_ray.selector.gradient import Less
from g2is_ray.selector.interface import Choice, Pool, Selector, Target, descending

_ROUNDING = 1e-9  # of sums of as many numbers as a row has links, relative


class GraphDiverse(Less):
    """As `Less`, but the neighbors of a pick are left out.

    When nothing else is left, the round begins anew with those that were left out.
    """

    reads = frozenset({"gradients", "graph"})

    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        scores, left = products.max(axis=0), pool.free.copy()
        while left.any():
            allowed = left.copy()
            for row in descending(scores, left):
                if allowed[row]:
                    near = pool.neighbors[row]
                    allowed[near[near >= 0]] = False
                    left[row] = False
                    yield row, float(scores[row])


class FacilityLocation(Selector):
    """Rows that together cover the target, and the relevant rows of the pool.

    A target row is covered as far as its largest cosine to a pick. A row of the pool is covered as
    far as its largest similarity to a pick that it is linked with, wholly if it is picked itself,
    and counts by its score of `Less` if that is positive. Each of the two sums is divided by what
    the whole pool would give; a pick is the row that adds most to both together. Target rows soon
    have their best; what goes on to count is relevance that no pick is like.

    Source: greedy maximization of a monotone submodular function (Nemhauser, Wolsey and Fisher,
    1978), here facility location (Lin and Bilmes, 2011), evaluated lazily (Minoux, 1978).
    """

    reads = frozenset({"gradients", "graph"})
    step = "coverage"

    def directions(self, target: Target) -> NDArray[np.floating]:
        return np.concatenate([target.features, target.subtask_means()])

    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        graph, rows = similarity_graph(pool), len(target.features)
        cosines, relevance = products[:rows], np.maximum(products[rows:].max(axis=0), 0)
        most = np.maximum(cosines.max(axis=1), 0).sum(dtype=np.float64) or 1.0
        total = relevance.sum(dtype=np.float64) or 1.0
        of_target, of_pool = np.zeros(rows), np.zeros(len(relevance))  # covered so far

        def linked(row: int) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
            own = slice(*graph.indptr[row : row + 2])
            return graph.indices[own], graph.data[own]

        def gain(row: int) -> float:
            near, similar = linked(row)
            more = np.maximum(similar - of_pool[near], 0) * relevance[near]
            towards = np.maximum(cosines[:, row] - of_target, 0)
            return float(towards.sum() / most + more.sum() / total)

        alone = sum(np.maximum(own, 0, dtype=np.float64) for own in cosines) / most
        alone += graph @ relevance.astype(np.float64) / total
        for row, added in lazy_greedy(gain, alone, pool.free):
            near, similar = linked(row)
            of_pool[near] = np.maximum(of_pool[near], similar)
            np.maximum(of_target, cosines[:, row], out=of_target)
            yield row, added


def lazy_greedy(
    gain: Callable[[int], float], alone: NDArray[np.float64], free: NDArray[np.bool_]
) -> Iterator[Choice]:
    """Free rows, each the one with the largest gain by then, of equal ones the earlier.

    Gains may only shrink as rows are taken, so an old one is a bound: a row is compared with the
    others' bounds once its own gain is known anew.

    Args:
        gain: of a row, by what was taken so far.
        alone: gains [n] before anything is taken, none negative, but for rounding.
    """
    rows = np.flatnonzero(free)
    most = alone[rows] * (1 + _ROUNDING)
    bounds = list(zip((-most).tolist(), rows.tolist(), strict=True))
    heapq.heapify(bounds)
    while bounds:
        _, row = heapq.heappop(bounds)
        now = (-gain(row), row)
        if bounds and bounds[0] < now:
            heapq.heappush(bounds, now)
        else:
            yield row, -now[0]


def similarity_graph(pool: Pool) -> Any:
    """The kNN graph as a CSR matrix [n, n]: symmetric, positive similarities, a row's own 1.

    Two rows are linked if either is a neighbor of the other.
    """
    from scipy import sparse

    neighbors = np.asarray(pool.neighbors)
    rows = np.arange(len(neighbors), dtype=neighbors.dtype)
    near = np.column_stack([rows, neighbors])
    similar = np.column_stack([np.ones(len(rows), np.float32), np.asarray(pool.similarities)])
    held = (near >= 0) & (similar > 0)
    bounds = np.append(0, np.cumsum(np.count_nonzero(held, axis=1)))
    if bounds[-1] < 2**31:
        bounds = bounds.astype(near.dtype)  # or scipy would make int64 of all row numbers
    directed = sparse.csr_array((similar[held], near[held], bounds), shape=(len(rows), len(rows)))
    return directed.maximum(directed.T)
