"""Builds the kNN graph of a workspace's pool, in pieces that any worker can do.

Base rows are held in groups of parts that fit into memory. A piece is a pair of a query part and a
group, and the neighbors of a part are the best over its pairs. A search is exact, or restricted to
the lists (`Lists`) that a row probes. Every graph that is not exact by construction is compared
with exact search on a sample of rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from g2is_ray.config import GraphSettings
from g2is_ray.errors import SettingError, last_line
from g2is_ray.features.store import FeatureSet
from g2is_ray.graph.plan import GraphTask, read_plan
from g2is_ray.graph.recall import found_share, interval, sample_neighbors
from g2is_ray.graph.search import (
    Lists,
    Nearest,
    on_device,
    require_faiss,
    search_exactly,
    search_lists,
    sketch,
    sketch_dimensions,
)
from g2is_ray.workspace.storage import array_bytes
from g2is_ray.workspace.workspace import Workspace

_TRAINING_ROWS = 32  # rows per list that k-means is trained on
_TRAINING_BYTES = 2**30  # largest array of sketches that k-means is trained on

Pieces = tuple[dict[str, NDArray[Any]], dict[str, Any]]
"""Arrays by kind, and entries of the receipt."""


class GraphBuilder:
    """Does the pieces of one graph; holds one group of base rows in memory."""

    def __init__(self, workspace: Workspace, stage: str, settings: GraphSettings) -> None:
        plan = read_plan(workspace, stage)
        assert plan is not None
        self._workspace, self._stage, self._plan = workspace, stage, plan
        self._settings = settings
        self._features = FeatureSet(
            workspace, settings.features, center=settings.center, of_graph=True
        )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._held: tuple[int, Any] | None = None  # group, and its base rows or index

    def do(self, task: GraphTask) -> dict[str, Any]:
        """Do one piece of work and return its receipt."""
        began = time.monotonic()
        files, facts = {
            "sample": self._search_sample,
            "train": self._train,
            "tune": self._tune,
            "assign": self._assign,
            "pair": self._pair,
            "merge": self._merge,
        }[task.kind](task)
        facts["device"] = self._device.type
        facts["seconds"] = round(facts.get("seconds", 0) + time.monotonic() - began, 3)
        named = {f"{task.piece}.{kind}.npy": array_bytes(array) for kind, array in files.items()}
        return self._workspace.stage(self._stage).commit_once(task.piece, named, facts)

    def _array(self, task: GraphTask, kind: str) -> NDArray[Any]:
        return self._workspace.storage.read_array(f"{self._stage}/{task.piece}.{kind}.npy")

    # ---- before the search: how many lists to probe ---------------------------

    def _search_sample(self, task: GraphTask) -> Pieces:
        rows = np.array(self._plan.sample)
        nearest = Nearest(rows, self._settings.neighbors, self._device)
        base, numbers, _ = self._base([task.part])
        search_exactly(nearest, on_device(self._take(rows), self._device), base, numbers)
        return _found(nearest), {}

    def _train(self, task: GraphTask) -> Pieces:
        valid = self._features.valid_rows()
        most = _TRAINING_BYTES // (4 * sketch_dimensions(self._features.dimensions))
        count = min(len(valid), _TRAINING_ROWS * self._plan.lists, most)
        rows = np.sort(np.random.default_rng(1).choice(valid, size=count, replace=False))
        lists = Lists.train(self._sketches(rows), min(self._plan.lists, count), self._device)
        return {"centroids": lists.centroids}, {"rows": count}

    def _tune(self, task: GraphTask) -> Pieces:
        """Find the smallest probe with enough recall on half of the sample.

        Probing p lists finds the exact neighbors that are in the p lists nearest to the row.
        """
        rows = np.array(self._plan.sample)[::2]
        exact = sample_neighbors(self._workspace, self._stage, self._features.parts)[0][::2]
        lists = self._lists()
        order = lists.nearest(self._sketches(rows), len(lists.centroids))
        rank_of_list = np.argsort(order, axis=1)  # [rows, lists]
        known, where = np.unique(exact, return_inverse=True)
        list_of = lists.nearest(self._sketches(np.maximum(known, 0)), 1)[:, 0]
        needed = np.take_along_axis(rank_of_list, list_of[where].reshape(exact.shape), axis=1)
        for probe in range(1, order.shape[1] + 1):
            if interval(found_share(needed < probe, exact >= 0))[0] >= self._settings.recall:
                break
        return {}, {"probe": probe, "lists": order.shape[1]}

    def _assign(self, task: GraphTask) -> Pieces:
        probe = self._workspace.stage(self._stage).require_piece(GraphTask(kind="tune").piece)[
            "probe"
        ]
        return {"lists": self._lists().nearest(sketch(self._features.read(task.part)), probe)}, {}

    def _lists(self) -> Lists:
        return Lists(self._array(GraphTask(kind="train"), "centroids"), self._device)

    # ---- the search -------------------------------------------------------------

    def _pair(self, task: GraphTask) -> Pieces:
        x = self._features.read(task.part)
        rows = self._features.valid_rows([task.part])
        valid = rows - self._features.first_rows[task.part]
        nearest = Nearest(rows, self._settings.neighbors, self._device)
        if self._held is None or self._held[0] != task.group:
            self._held = None  # free its memory before the next group is read
            self._held = task.group, self._hold(self._plan.groups[task.group])
        queries = np.ascontiguousarray(x[valid])
        if self._plan.search == "faiss":
            self._search_index(nearest, queries, *self._held[1])
        elif self._plan.search == "exact":
            base, numbers, _ = self._held[1]
            held, stop = on_device(queries, self._device), 0
            for part in self._plan.groups[task.group]:  # so that groups do not change products
                start, stop = stop, stop + len(self._features.valid_rows([part]))
                search_exactly(nearest, held, base[start:stop], numbers[start:stop])
        else:
            probes = self._array(GraphTask(kind="assign", part=task.part), "lists")[valid]
            search_lists(nearest, on_device(queries, self._device), probes, *self._held[1])
        return _found(nearest) | {"rows": rows}, {}

    def _hold(self, parts: Sequence[int]) -> Any:
        if self._plan.search == "faiss":
            return self._index(parts)
        return self._base(parts, by_list=self._plan.search == "ivf")

    def _base(
        self, parts: Sequence[int], *, by_list: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.int32]]:
        """Return valid rows of `parts`, their row numbers and lists, sorted by list if asked."""
        numbers = [self._features.valid_rows([part]) for part in parts]
        lists = np.zeros(sum(map(len, numbers)), dtype=np.int32)
        if by_list:
            held = [self._array(GraphTask(kind="assign", part=p), "lists")[:, 0] for p in parts]
            nearest_lists = (
                near[rows - self._features.first_rows[part]]
                for part, near, rows in zip(parts, held, numbers, strict=True)
            )
            lists = np.concatenate(list(nearest_lists))
        order = np.argsort(lists, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        kind = torch.float16 if self._device.type == "cuda" else torch.float32
        base = torch.empty(len(order), self._features.dimensions, dtype=kind, device=self._device)
        start = 0
        for part, rows in zip(parts, numbers, strict=True):
            x = self._features.read(part)[rows - self._features.first_rows[part]]
            to = torch.from_numpy(place[start : start + len(rows)]).to(self._device)
            base[to] = on_device(x, self._device)
            start += len(rows)
        ordered = torch.from_numpy(np.concatenate(numbers)[order]).to(self._device)
        return base, ordered, lists[order]

    def _index(self, parts: Sequence[int]) -> tuple[Any, NDArray[np.int64]]:
        """Return a FAISS index of all valid rows, and their row numbers."""
        faiss = require_faiss()
        index = faiss_index(self._settings.graph, self._features.dimensions)
        numbers = self._features.valid_rows()
        if not index.is_trained:
            count = min(len(numbers), 2**16)
            rows = np.random.default_rng(1).choice(numbers, size=count, replace=False)
            index.train(self._take(np.sort(rows)))
        for part in parts:
            x = self._features.read(part)
            valid = self._features.valid_rows([part]) - self._features.first_rows[part]
            index.add(np.ascontiguousarray(x[valid]))
        if faiss.get_num_gpus() > 0 and self._device.type == "cuda":
            index = faiss.index_cpu_to_all_gpus(index)
        return index, numbers

    def _search_index(
        self,
        nearest: Nearest,
        queries: NDArray[np.float32],
        index: Any,
        numbers: NDArray[np.int64],
    ) -> None:
        k = min(self._settings.neighbors + 1, len(numbers))  # a row finds itself
        found, at = index.search(queries, k)
        rows = np.where(at >= 0, numbers[at], -1)
        nearest.offer_found(torch.from_numpy(rows), torch.from_numpy(found))

    def _merge(self, task: GraphTask) -> Pieces:
        rows = self._features.part_rows[task.part]
        k = self._settings.neighbors
        pairs = [
            GraphTask(kind="pair", part=task.part, group=group)
            for group in range(len(self._plan.groups))
        ]
        valid = self._array(pairs[0], "rows")
        nearest = Nearest(valid, k, torch.device("cpu"))
        for pair in pairs:
            found, cosines = (self._array(pair, kind) for kind in ("neighbors", "cosines"))
            nearest.offer_found(torch.from_numpy(found), torch.from_numpy(cosines))
        small = np.int32 if self._features.rows < 2**31 else np.int64
        neighbors = np.full((rows, k), -1, dtype=small)
        similarities = np.zeros((rows, k), dtype=np.float32)
        at = valid - self._features.first_rows[task.part]
        neighbors[at], similarities[at] = nearest.result()
        found = neighbors >= 0
        facts = {
            "rows": rows,
            "edges": int(found.sum()),
            "similarity_sum": float(similarities[found].sum(dtype=np.float64)),
            "seconds": sum(
                self._workspace.stage(self._stage).require_piece(p.piece)["seconds"] for p in pairs
            ),
        }
        return {"neighbors": neighbors, "similarities": similarities}, facts

    # ---- rows ---------------------------------------------------------------------

    def _take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._features.take(rows)

    def _sketches(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return sketches of rows, which are read a few at a time."""
        blocks = np.array_split(rows, max(1, len(rows) // 4096))
        return np.concatenate([sketch(self._take(block)) for block in blocks])


def _found(nearest: Nearest) -> dict[str, NDArray[Any]]:
    neighbors, found = nearest.result()
    return {"neighbors": neighbors, "cosines": found}


def faiss_index(factory: str, dimensions: int) -> Any:
    """Return an empty FAISS index by inner product.

    Args:
        factory: FAISS's factory string, such as `HNSW32`.
        dimensions: of the rows.

    Raises:
        SettingError: FAISS does not know the factory string.
    """
    faiss = require_faiss()
    try:
        return faiss.index_factory(dimensions, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise SettingError(
            f"graph {factory!r} is neither auto, exact, ivf nor an index that FAISS knows "
            f"({last_line(error)[:200]})"
        ) from None
