"""Nearest neighbors by cosine, from dense products of tiles and a running top k.

Shapes: q query rows, b base rows, d dimensions, f sketch dimensions, k neighbors, p probes. Queries
search among base rows.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from g2is_ray.errors import SettingError

_WHEELS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12")
_TILE = 4096  # base rows of a tile; a part has as many by default
_SKETCH = 512  # dimensions that k-means uses, or a quarter of all dimensions if that is more
_QUERIES = 1024  # query rows of a tile; its cosines take 4 x _QUERIES x _TILE bytes
_ALL = slice(None)
_CELLS = 2**22  # cosines in memory at once while lists are searched


def _cpu_has_avx512() -> bool:
    try:
        with open("/proc/cpuinfo") as info:  # noqa: PTH123
            return any("avx512f" in line for line in info if line.startswith("flags"))
    except OSError:
        return False


def require_faiss() -> ModuleType:
    """Import FAISS, with fast OpenBLAS kernels.

    Raises:
        SettingError: no FAISS package is installed, or several, which break each other.
    """
    installed = []
    for name in _WHEELS:
        try:
            importlib.metadata.distribution(name)
            installed.append(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if len(installed) > 1:
        raise SettingError(
            f"{' and '.join(installed)} are both installed and overwrite each other's files; "
            "uninstall all of them, then install g2is-ray[cpu] or g2is-ray[gpu]"
        )
    if _cpu_has_avx512():
        # The bundled OpenBLAS does not know newer Xeons and falls back to SSE3 kernels.
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    try:
        import faiss  # after torch, which faiss-gpu needs to be loaded
    except ImportError as error:
        raise SettingError(
            f"FAISS cannot be imported: {error}; install g2is-ray[cpu], or g2is-ray[gpu]"
        ) from None
    return faiss


def on_device(x: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    """Return rows in the dtype for products: float32 on a CPU, float16 on a GPU."""
    tensor = torch.from_numpy(x)
    return tensor.to(device, torch.float16) if device.type == "cuda" else tensor


def cosines(queries_qd: torch.Tensor, base_bd: torch.Tensor) -> torch.Tensor:
    """Return the cosines of unit rows, float32 [q, b]."""
    if queries_qd.device.type == "cuda":
        return torch.mm(queries_qd, base_bd.T, out_dtype=torch.float32)
    return queries_qd @ base_bd.T


class Nearest:
    """Keeps the k nearest neighbors found so far of each query, by descending cosine.

    Args:
        rows: row numbers of the queries, int64 [q]; no row becomes its own neighbor.
        k: neighbors to keep.
        device: holds the neighbors.
    """

    def __init__(self, rows: NDArray[np.int64], k: int, device: torch.device) -> None:
        self.k = k
        self._own_q = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(device)
        self._cosines_qk = torch.full((len(rows), k), -torch.inf, device=device)
        self._neighbors_qk = torch.full((len(rows), k), -1, device=device)

    def offer(self, cosines_mb: torch.Tensor, rows_b: torch.Tensor, which_m: slice) -> None:
        """Offer base rows to the m queries `which_m`.

        Args:
            cosines_mb: float32 [m, b]; overwritten.
            rows_b: row numbers of the base rows, int64 [b].
            which_m: positions of the queries.
        """
        own_m = self._own_q[which_m]
        cosines_mb.masked_fill_(own_m[:, None] == rows_b[None, :], -torch.inf)
        found_mk, at = cosines_mb.topk(min(self.k, len(rows_b)), dim=1)
        both = torch.cat([self._cosines_qk[which_m], found_mk], dim=1)
        rows = torch.cat([self._neighbors_qk[which_m], rows_b[at]], dim=1)
        best_mk, at = _best(both, self.k)
        self._cosines_qk[which_m] = best_mk
        self._neighbors_qk[which_m] = rows.gather(1, at)

    def offer_found(
        self,
        neighbors_mb: torch.Tensor,
        cosines_mb: torch.Tensor,
        which_m: slice = _ALL,
    ) -> None:
        """Offer neighbors [m, b] to the queries `which_m`; -1 or a cosine of -inf is skipped."""
        both = torch.cat([self._cosines_qk[which_m], cosines_mb], dim=1)
        rows = torch.cat([self._neighbors_qk[which_m], neighbors_mb], dim=1)
        both.masked_fill_((rows < 0) | (rows == self._own_q[which_m, None]), -torch.inf)
        self._cosines_qk[which_m], at = _best(both, self.k)
        self._neighbors_qk[which_m] = rows.gather(1, at)

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return neighbors, int64 [q, k], and cosines, float32 [q, k]; -1 and 0 if missing."""
        neighbors = self._neighbors_qk.cpu().numpy()
        found = self._cosines_qk.cpu().numpy()
        missing = ~np.isfinite(found)
        return np.where(missing, -1, neighbors), np.where(missing, 0, found).astype(np.float32)


def _best(cosines_qb: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest and their positions, descending; the first of equal ones wins.

    `topk` returns any of equal ones, so the result would depend on the order of merging.
    """
    found, at = cosines_qb.sort(dim=1, descending=True, stable=True)
    return found[:, :k], at[:, :k]


def search_exactly(
    nearest: Nearest, queries_qd: torch.Tensor, base_bd: torch.Tensor, rows_b: torch.Tensor
) -> None:
    """Offer every base row to every query."""
    for queries in _slices(len(queries_qd), _QUERIES):
        for tile in _slices(len(base_bd), _TILE):
            nearest.offer(cosines(queries_qd[queries], base_bd[tile]), rows_b[tile], queries)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(count, start + size)) for start in range(0, count, size))


def check_neighbors(k: int, rows: int) -> None:
    """Refuse a number of neighbors that no row can have.

    Raises:
        SettingError: `k` is not below `rows`.
    """
    if k >= rows:
        raise SettingError(f"neighbors must be below the number of rows, {rows}, got {k}")


def knn_graph(x: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the exact kNN graph, int64 [n, k], of unit rows `x` [n, d], by descending cosine.

    A row of zeros has no neighbors; missing neighbors are -1.

    Raises:
        SettingError: `k` is not below n.
    """
    check_neighbors(k, len(x))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    valid = np.flatnonzero(np.any(x != 0, axis=1))
    held = on_device(np.ascontiguousarray(x[valid]), device)
    nearest = Nearest(valid, k, device)
    search_exactly(nearest, held, held, torch.from_numpy(valid).to(device))
    found = np.full((len(x), k), -1, dtype=np.int64)
    found[valid] = nearest.result()[0]
    return found


class Lists:
    """Rows grouped by FAISS's k-means, so that a row is compared only with the lists near it.

    K-means works on sketches of the rows (`sketch`), which have fewer dimensions. `recall` measures
    the resulting share of the exact graph.

    Args:
        centroids: centers of the lists, float32 [lists, f].
        device: computes distances.
    """

    def __init__(self, centroids: NDArray[np.float32], device: torch.device) -> None:
        self.centroids = centroids
        self._held = torch.from_numpy(centroids).to(device)

    @classmethod
    def train(cls, sketches: NDArray[np.float32], count: int, device: torch.device) -> Lists:
        """Run k-means by inner product on sketches [n, f], for `count` lists."""
        faiss = require_faiss()
        kmeans: Any = faiss.Kmeans(
            sketches.shape[1],
            count,
            niter=6,
            seed=0,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=64,
            gpu=device.type == "cuda" and faiss.get_num_gpus() > 0,
        )
        kmeans.train(sketches)
        return cls(np.asarray(kmeans.centroids, dtype=np.float32), device)

    def nearest(self, sketches: NDArray[np.float32], count: int) -> NDArray[np.int32]:
        """Return the `count` lists nearest to each sketch, nearest first, int32 [n, count]."""
        rows = torch.from_numpy(sketches).to(self._held.device)
        found = (rows @ self._held.T).topk(min(count, len(self._held)), dim=1).indices
        return found.cpu().numpy().astype(np.int32)


def sketch_dimensions(dimensions: int) -> int:
    """Return the dimensions of a sketch of a row of `dimensions` dimensions."""
    return min(max(_SKETCH, dimensions // 4), dimensions)


def sketch(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a CountSketch [n, f] of rows [n, d].

    Dimensions whose numbers are equal modulo f are summed, each with a random sign.
    """
    count = sketch_dimensions(x.shape[1])
    signs = np.random.default_rng(0).choice(np.array([-1, 1], dtype=np.float32), x.shape[1])
    out = np.zeros((len(x), count), dtype=np.float32)
    for start in range(0, x.shape[1], count):
        part = x[:, start : start + count]
        out[:, : part.shape[1]] += part * signs[start : start + count]
    return out


def search_lists(
    nearest: Nearest,
    queries_qd: torch.Tensor,
    probes_qp: NDArray[np.int32],
    base_bd: torch.Tensor,
    rows_b: torch.Tensor,
    lists_b: NDArray[np.int32],
) -> None:
    """Offer to each query the base rows in the lists that it probes.

    Args:
        nearest: gets the base rows.
        queries_qd: rows of the queries.
        probes_qp: lists that each query probes; a list without base rows is skipped.
        base_bd: base rows, sorted by list.
        rows_b: row numbers of the base rows.
        lists_b: list of each base row, ascending.
    """
    numbers, starts, sizes = np.unique(lists_b, return_index=True, return_counts=True)
    known = {int(number): i for i, number in enumerate(numbers)}
    at_list = np.array([known.get(i, -1) for i in range(int(probes_qp.max(initial=-1)) + 1)])
    k = nearest.k + 1  # a row may find itself
    for queries in _slices(len(queries_qd), max(1, _CELLS // (probes_qp.shape[1] * k))):
        index_qp = at_list[probes_qp[queries]]
        cosines_qk, at_qk = _nearest_in_lists(
            queries_qd[queries], index_qp, base_bd, starts, sizes, k
        )
        nearest.offer_found(rows_b[at_qk], cosines_qk, queries)


def _nearest_in_lists(
    queries_qd: torch.Tensor,
    index_qp: NDArray[np.int64],
    base_bd: torch.Tensor,
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and positions of the k nearest base rows in the probed lists.

    A missing neighbor has the cosine -inf. A list and the queries that probe it make one small
    product. Products are written into a table with one row per query and list, and `topk` runs on
    the whole table, because more operations per product would take longer than the product.

    Args:
        queries_qd: rows of the queries.
        index_qp: lists that each query probes, as positions in `starts` and `sizes`; -1 for a list
            without base rows.
        base_bd: base rows, sorted by list.
        starts: first base row of each list.
        sizes: number of base rows of each list.
        k: neighbors to return.
    """
    device, (count, probes) = queries_qd.device, index_qp.shape
    cosines_nk = torch.full((count * probes, k), -torch.inf, device=device)
    at_nk = torch.zeros(count * probes, k, dtype=torch.int64, device=device)
    for tiles in _tables(index_qp, sizes):
        pairs = np.concatenate([tile for _, tile in tiles])
        queries = torch.from_numpy(pairs // probes).to(device)
        held = queries_qd[queries]
        width = int(max(sizes[i] for i, _ in tiles))
        table_nw = torch.full((len(pairs), width), -torch.inf, device=device)
        row = 0
        for i, tile in tiles:
            rows = slice(row, row := row + len(tile))
            base = base_bd[starts[i] : starts[i] + sizes[i]]
            table_nw[rows, : sizes[i]] = cosines(held[rows], base)
        best, at = table_nw.topk(min(k, width), dim=1)
        first = np.repeat([starts[i] for i, _ in tiles], [len(tile) for _, tile in tiles])
        which = torch.from_numpy(pairs).to(device)
        cosines_nk[which, : best.shape[1]] = best
        at_nk[which, : best.shape[1]] = at + torch.from_numpy(first).to(device)[:, None]
    cosines_qk, at = cosines_nk.view(count, -1).topk(k, dim=1)
    return cosines_qk, at_nk.view(count, -1).gather(1, at).clamp_(max=len(base_bd) - 1)


def _tables(
    index_qp: NDArray[np.int64], sizes: NDArray[np.int64]
) -> Iterator[list[tuple[int, NDArray[np.int64]]]]:
    """Yield lists with the (query, probe) pairs that probe them, one table at a time.

    Short lists come first, so the lists of a table have similar lengths.
    """
    flat = index_qp.ravel()
    order = np.argsort(flat, kind="stable")
    bounds = np.searchsorted(flat[order], np.arange(len(sizes) + 1))
    tiles: list[tuple[int, NDArray[np.int64]]] = []
    held = 0
    for i in np.argsort(sizes, kind="stable"):
        wanted = order[bounds[i] : bounds[i + 1]]
        for part in _slices(len(wanted), max(1, _CELLS // int(sizes[i]))):
            tile = wanted[part]
            if tiles and (held + len(tile)) * sizes[i] > _CELLS:
                yield tiles
                tiles, held = [], 0
            tiles.append((int(i), tile))
            held += len(tile)
    if tiles:
        yield tiles
