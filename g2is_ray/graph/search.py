"""Nearest neighbors by cosine: dense products of tiles, with a running top k.

Shapes: q query rows, b base rows that are searched among, d dimensions, k neighbors.
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
_TILE = 4096  # rows of a tile's side, as many as a part has by default
_FOLDED = 512  # dimensions that lists are told apart in, or a quarter of all if that is more
_QUERIES = 1024  # of a tile that are compared at once; memory is 4 x this x tile bytes
_ALL = slice(None)
_CELLS = 2**22  # cosines that are held at once while lists are searched


def _cpu_has_avx512() -> bool:
    try:
        with open("/proc/cpuinfo") as info:  # noqa: PTH123
            return any("avx512f" in line for line in info if line.startswith("flags"))
    except OSError:
        return False


def require_faiss() -> ModuleType:
    """Import FAISS, with the fast kernels of the OpenBLAS its wheels carry.

    Raises:
        SettingError: no FAISS package is installed, or more than one, which breaks both.
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
            f"{' and '.join(installed)} are both installed and own the same files; uninstall "
            "all of them, then install g2is-ray[cpu] or g2is-ray[gpu]"
        )
    if _cpu_has_avx512():
        # The bundled OpenBLAS does not know newer Xeons and falls back to SSE3 kernels.
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    try:
        import faiss  # after torch, which faiss-gpu needs to find loaded
    except ImportError as error:
        raise SettingError(
            f"FAISS cannot be imported ({error}); install g2is-ray[cpu], or g2is-ray[gpu]"
        ) from None
    return faiss


def on_device(x: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    """Rows as tiles multiply them: float32 on a CPU, float16 on a GPU's tensor cores."""
    tensor = torch.from_numpy(x)
    return tensor.to(device, torch.float16) if device.type == "cuda" else tensor


def cosines(queries_qd: torch.Tensor, base_bd: torch.Tensor) -> torch.Tensor:
    """Products of unit rows, float32 [q, b]."""
    if queries_qd.device.type == "cuda":
        return torch.mm(queries_qd, base_bd.T, out_dtype=torch.float32)
    return queries_qd @ base_bd.T


class Nearest:
    """The k nearest found so far of each of some query rows, and their cosines, descending.

    Args:
        rows: the queries' own row numbers, int64 [q]; no row is its own neighbor.
    """

    def __init__(self, rows: NDArray[np.int64], k: int, device: torch.device) -> None:
        self.k = k
        self._own_q = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(device)
        self._cosines_qk = torch.full((len(rows), k), -torch.inf, device=device)
        self._neighbors_qk = torch.full((len(rows), k), -1, device=device)

    def offer(self, cosines_mb: torch.Tensor, rows_b: torch.Tensor, which_m: slice) -> None:
        """Offer base rows to some of the queries.

        Args:
            cosines_mb: float32; overwritten.
            rows_b: the base rows' numbers, int64.
            which_m: the queries, as positions.
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
        """Offer to some of the queries what a search found, -1 or a cosine of -inf for nothing."""
        both = torch.cat([self._cosines_qk[which_m], cosines_mb], dim=1)
        rows = torch.cat([self._neighbors_qk[which_m], neighbors_mb], dim=1)
        both.masked_fill_((rows < 0) | (rows == self._own_q[which_m, None]), -torch.inf)
        self._cosines_qk[which_m], at = _best(both, self.k)
        self._neighbors_qk[which_m] = rows.gather(1, at)

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Neighbors [q, k] and cosines [q, k]; -1 and 0 where there are fewer than k."""
        neighbors = self._neighbors_qk.cpu().numpy()
        found = self._cosines_qk.cpu().numpy()
        nothing = ~np.isfinite(found)
        return np.where(nothing, -1, neighbors), np.where(nothing, 0, found).astype(np.float32)


def _best(cosines_qb: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest and where they are, in descending order; of equal ones the first.

    `topk` takes any of equal ones, and then the best of all would depend on what is merged
    with what.
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
    """Refuse a `k` that no row can have.

    Raises:
        SettingError: k is not below the number of rows.
    """
    if k >= rows:
        raise SettingError(f"neighbors must be below the number of rows, {rows}, got {k}")


def knn_graph(x: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Neighbor rows [n, k] of unit rows `x` [n, d], exact, in descending cosine.

    A row of zeros has no neighbors; a row with fewer than k is filled up with -1.
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
    """Rows grouped by FAISS's k-means, so that a row need only be compared with lists near it.

    Lists are told apart in the fewer dimensions that rows are folded to (`fold`), where that
    costs little; how much of the exact graph is found through them is measured.
    """

    def __init__(self, centroids: NDArray[np.float32], device: torch.device) -> None:
        self.centroids = centroids
        self._held = torch.from_numpy(centroids).to(device)

    @classmethod
    def train(cls, folded: NDArray[np.float32], count: int, device: torch.device) -> Lists:
        """k-means of folded rows [n, f] by inner product, `count` lists."""
        faiss = require_faiss()
        kmeans: Any = faiss.Kmeans(
            folded.shape[1],
            count,
            niter=6,
            seed=0,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=64,
            gpu=device.type == "cuda" and faiss.get_num_gpus() > 0,
        )
        kmeans.train(folded)
        return cls(np.asarray(kmeans.centroids, dtype=np.float32), device)

    def nearest(self, folded: NDArray[np.float32], count: int) -> NDArray[np.int32]:
        """The `count` lists nearest to each folded row [n, f], nearest first."""
        rows = torch.from_numpy(folded).to(self._held.device)
        found = (rows @ self._held.T).topk(min(count, len(self._held)), dim=1).indices
        return found.cpu().numpy().astype(np.int32)


def folded(dimensions: int) -> int:
    """Dimensions that rows of so many are folded to."""
    return min(max(_FOLDED, dimensions // 4), dimensions)


def fold(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows [n, d] in fewer dimensions: a CountSketch of what they are.

    Dimensions that are equal modulo their number are added up, each with a random sign.
    """
    count = folded(x.shape[1])
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
        probes_qp: the lists that each query probes; one outside of the base holds nothing.
        lists_b: the list of each base row, ascending.
    """
    numbers, starts, sizes = np.unique(lists_b, return_index=True, return_counts=True)
    known = {int(number): i for i, number in enumerate(numbers)}
    at_list = np.array([known.get(i, -1) for i in range(int(probes_qp.max(initial=-1)) + 1)])
    k = nearest.k + 1  # the row itself may be among them
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
    """Cosines and positions of the k nearest base rows in the probed lists; -inf for nothing.

    A list and the queries that probe it make one small product. Products are written side by
    side into a table, one row per query and list, and the nearest are taken of the whole table,
    since more operations per product would take longer than the product.

    Args:
        index_qp: the lists that each query probes, as positions in `starts` and `sizes`, which
            say where a list lies in the base; -1 for a list that is not there.
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
    """Lists and the pairs of query and probe that want them, a table's worth at a time.

    Short lists come first, so that the lists of a table are about equally long.
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
