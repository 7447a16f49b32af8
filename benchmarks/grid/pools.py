"""Selections from one pool, by the library's own selectors, as `g2is select` makes them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from g2is_ray.config import GraphSettings
from g2is_ray.features.rows import ArrayRows
from g2is_ray.graph.search import Nearest, on_device, search_exactly
from g2is_ray.models import loading
from g2is_ray.selection.budget import row_budget, token_budget
from g2is_ray.selection.scan import scan
from g2is_ray.selector.budget import Budget as Amount
from g2is_ray.selector.interface import Pool, Target
from g2is_ray.selector.methods import Method, parse_method
from g2is_ray.selector.registry import find, graph_read, reads_features
from grid.data import Row
from grid.design import METHODS, Budget, Cell
from grid.features import Source
from grid.files import write_whole

log = logging.getLogger(__name__)


class CellPool:
    """What a cell's target may select from: mean and graph are of these rows alone."""

    def __init__(self, source: Source, cell: Cell) -> None:
        self._source, self._cell = source, cell
        self.rows = np.array(source.data.pool(cell, source.scale))  # [n], in the union
        self.tokens = source.tokens[self.rows]
        self._held: tuple[GraphSettings, NDArray[np.float32]] | None = None

    def amount(self, budget: Budget) -> Amount:
        """The budget, in supervised tokens or in rows."""
        if budget.unit == "rows":
            return row_budget(len(self.rows), budget.share)
        return token_budget(self.tokens, int(budget.share * self.tokens.sum()))

    def mean_rows(self, budget: Budget) -> float:
        """How many rows of mean length the budget would buy: it decides the optimizer steps."""
        amount = self.amount(budget)
        return amount.amount if amount.tokens is None else amount.amount / self.tokens.mean()

    def select(self, name: str, budget: Budget, seed: int) -> NDArray[np.int64]:
        """Rows of the union that a method picks, in order; kept for the next time."""
        method = parse_method(METHODS[name])
        reads_seed = "seed" in find(method.selector).reads
        file = self._source.folder / "selections" / str(self._cell) / str(budget)
        file /= f"{name}-{seed}.npy" if reads_seed else f"{name}.npy"
        if not file.exists():
            picks = self._picks(method, self.amount(budget), seed)
            write_whole(file, lambda stream: np.save(stream, self.rows[picks]))
        return np.asarray(np.load(file))

    def _picks(self, method: Method, amount: Amount, seed: int) -> list[int]:
        graph = method.applied(GraphSettings(neighbors=self._source.settings.neighbors))
        kind = find(method.selector)
        own = kind.settings_class
        selector = kind(method.applied(own())) if own else kind()  # type: ignore[call-arg]
        graph, reads = graph_read(selector.reads, graph), selector.reads
        target = Target(features=np.empty((0, 0), np.float32), texts=[], subtasks=[])
        rows = self._source.data.select[self._cell.target]
        products = np.empty((0, len(self.rows)), dtype=np.float32)
        given: dict[str, Any] = {"free": self.tokens > 0}
        if "texts" in reads:
            target = dataclasses.replace(target, texts=list(map(_text, rows)))
            given["texts"] = self._texts
        if reads_features(reads):
            x, features = self._x(graph), self._of_target(graph)
            target = dataclasses.replace(target, features=features, subtasks=[""] * len(rows))
            given["features"] = ArrayRows(x)
            directions = [selector.directions(target)]
            [products], given["free"] = scan(given["features"], directions)
        if "graph" in reads:
            given["neighbors"], given["similarities"] = self._graph(graph)
        if "tokens" in reads:
            given["tokens"] = self.tokens
        if "seed" in reads:
            given["seed"] = seed
        return selector.select(Pool(**given), [target], [products], amount).rows

    def _texts(self) -> Iterator[str]:
        union = self._source.data.union
        return (_text(union[row]) for row in self.rows)

    def _x(self, graph: GraphSettings) -> NDArray[np.float32]:
        """Features [n, d] that this graph is of; the last ones asked for are held."""
        if self._held is None or self._held[0] != graph:
            self._held = None  # before the next is formed
            x = self._source.features(graph.features, self.rows, center=graph.center)
            self._held = graph, x
        return self._held[1]

    def _of_target(self, graph: GraphSettings) -> NDArray[np.float32]:
        mean = self._embeddings_mean if graph.features == "embeddings" and graph.center else None
        return self._source.of_target(self._cell.target, graph.features, mean)

    @cached_property
    def _embeddings_mean(self) -> NDArray[np.float64]:
        return self._source.mean("embeddings", self.rows)

    def _graph(self, graph: GraphSettings) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Exact neighbors [n, k] and their similarities, kept for the next time."""
        kind = f"{graph.features}-{'centered' if graph.center else 'uncentered'}"
        level = self._cell.level if self._cell.level == "none" else str(self._cell)
        file = self._source.folder / "graphs" / level / f"{kind}.npz"  # pools without are the same
        if not file.exists():
            neighbors, similarities = _nearest(self._x(graph), graph.neighbors)
            held = {"neighbors": neighbors.astype(np.int32), "similarities": similarities}
            write_whole(file, lambda stream: np.savez(stream, **held))
            log.info("graph: %s %s", level, kind)
        with np.load(file) as held:
            return held["neighbors"], held["similarities"]


def _nearest(x: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    valid = np.flatnonzero(x.any(axis=1))
    device = loading.default_device()
    rows = on_device(x[valid], device)
    nearest = Nearest(valid, k, device)
    search_exactly(nearest, rows, rows, torch.from_numpy(valid).to(device))
    neighbors = np.full((len(x), k), -1)
    similarities = np.zeros((len(x), k), dtype=np.float32)
    neighbors[valid], similarities[valid] = nearest.result()
    return neighbors, similarities


def _text(row: Row) -> str:
    return "\n".join(message["content"] for message in row["messages"])
