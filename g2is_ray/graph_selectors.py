"""Selectors that also go by the kNN graph: by what is like a row, not by the row alone."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from g2is_ray.influence import Less
from g2is_ray.selector import Choice, Pool, Selector, Target, best_first, descending


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


class PageRank(Selector):
    """Relevance to the target, spread over the graph by personalized PageRank.

    A target row is relevant to as many of its nearest rows as a row of the pool has neighbors, each
    by its cosine if that is positive. As in `Less`, the mean within a subtask and the maximum over
    subtasks count; that is taken before spreading, so one system is solved whatever their number.

    PageRank grows with a row's degree, so the restart is weighted by degree and the result divided
    by it. On an undirected graph that leaves the expected relevance of the row where a random walk
    from this one ends, if it goes on with probability `damping` at each step; rows that are all
    alike relevant score alike, whatever their degrees. A row that the graph links with nothing
    relevant, at any distance, scores 0.

    Source: Page et al., "The PageRank Citation Ranking" (1999); Haveliwala, "Topic-Sensitive
    PageRank" (2002).
    """

    reads = frozenset({"gradients", "graph"})
    step = "relevance"
    damping: ClassVar[float] = 0.85
    tolerance: ClassVar[float] = 1e-9
    """Largest change of a score in the last iteration, as a share of the largest relevance."""

    def directions(self, target: Target) -> NDArray[np.floating]:
        return target.features

    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        graph = similarity_graph(pool)
        degrees = graph.sum(axis=1)
        relevance = _relevance(products, np.array(target.subtasks), len(pool.neighbors[0]))
        scores, change, enough = relevance, np.inf, self.tolerance * relevance.max()
        while change > enough:
            met = (graph @ scores) / degrees
            spread = (1 - self.damping) * relevance + self.damping * met
            scores, change = spread, np.abs(spread - scores).max()
        return best_first(scores, pool.free)


def _relevance(
    products: NDArray[np.float32], subtasks: NDArray[np.str_], count: int
) -> NDArray[np.float64]:
    """Positive cosines [m, n] of target rows to so many of their nearest rows, as one per row."""
    relevance = np.zeros(products.shape[1])
    for name in np.unique(subtasks):
        members = np.flatnonzero(subtasks == name)
        total = np.zeros_like(relevance)
        for member in members:
            cosines = products[member]
            nearest = list(islice(descending(cosines, cosines > 0), count))
            total[nearest] += cosines[nearest]
        np.maximum(relevance, total / len(members), out=relevance)
    return relevance


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

        def linked(row: int) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
            own = slice(*graph.indptr[row : row + 2])
            return graph.indices[own], graph.data[own]

        def gain(row: int) -> float:
            near, similar = linked(row)
            more = np.maximum(similar - of_pool[near], 0) * relevance[near]
            towards = np.maximum(cosines[:, row] - of_target, 0)
            return float(towards.sum() / most + more.sum() / total)

        for row, added in lazy_greedy(gain, pool.free):
            near, similar = linked(row)
            of_pool[near] = np.maximum(of_pool[near], similar)
            np.maximum(of_target, cosines[:, row], out=of_target)
            yield row, added


def lazy_greedy(gain: Callable[[int], float], free: NDArray[np.bool_]) -> Iterator[Choice]:
    """Free rows, each the one with the largest gain by then, of equal ones the earlier.

    Gains may only shrink as rows are taken, so an old one is a bound: a row is compared with the
    others' bounds once its own gain is known anew.
    """
    bounds = [(-gain(row), row) for row in np.flatnonzero(free).tolist()]
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
    neighbors = np.asarray(pool.neighbors)
    rows = np.arange(len(neighbors), dtype=neighbors.dtype)
    near = np.column_stack([rows, neighbors])
    similar = np.column_stack([np.ones(len(rows)), np.asarray(pool.similarities)])
    held = (near >= 0) & (similar > 0)
    bounds = np.append(0, np.cumsum(np.count_nonzero(held, axis=1)))
    if bounds[-1] < 2**31:
        bounds = bounds.astype(near.dtype)  # or scipy would make int64 of all row numbers
    directed = sparse.csr_array((similar[held], near[held], bounds), shape=(len(rows), len(rows)))
    return directed.maximum(directed.T)
