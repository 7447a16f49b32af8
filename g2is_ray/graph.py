"""The kNN gradient graph, by exact inner-product search in FAISS."""

from __future__ import annotations

import importlib.metadata
import os
import time
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2is_ray.errors import SettingError
from g2is_ray.features import GradientSet
from g2is_ray.workspace import Workspace, array_bytes, part_name

_WHEELS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12")


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
    if "faiss-gpu" in installed:
        import torch  # noqa: F401  faiss-gpu works beside torch's CUDA only if torch comes first
    if _cpu_has_avx512():
        # The bundled OpenBLAS does not know newer Xeons and falls back to SSE3 kernels.
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    try:
        import faiss
    except ImportError as error:
        raise SettingError(
            f"FAISS cannot be imported ({error}); install g2is-ray[cpu], or g2is-ray[gpu]"
        ) from None
    return faiss


class ExactGraph:
    """Exact kNN search by cosine over unit rows that are added in order.

    Rows of zeros are invalid: they have no neighbors and are nobody's. Memory is
    4 bytes x rows x dimensions.
    """

    def __init__(self, dimensions: int) -> None:
        self._index: Any = require_faiss().IndexFlatIP(dimensions)
        self._rows: list[NDArray[np.int64]] = []  # pool rows of what the index holds
        self._seen = 0

    def add(self, x: NDArray[np.float32]) -> None:
        """Add the next rows [n, d] of the pool."""
        valid = np.flatnonzero(np.any(x != 0, axis=1))
        self._index.add(np.ascontiguousarray(x[valid]))
        self._rows.append(valid + self._seen)
        self._seen += len(x)

    def search(
        self, x: NDArray[np.float32], first_row: int, k: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Neighbors of the pool rows `first_row`, `first_row + 1`, … with values `x` [n, d].

        Returns:
            Neighbor rows, int32 [n, k], and cosines, float32 [n, k], in descending order.
            A row without k neighbors is filled up with -1 and 0.
        """
        neighbors = np.full((len(x), k), -1, dtype=np.int32)
        similarities = np.zeros((len(x), k), dtype=np.float32)
        valid = np.flatnonzero(np.any(x != 0, axis=1))
        if not len(valid):
            return neighbors, similarities
        rows = np.concatenate(self._rows)
        found_sims, found = self._index.search(
            np.ascontiguousarray(x[valid]), min(k + 1, len(rows))
        )
        for i, own in enumerate(valid):
            near = rows[found[i]]
            # Among many equal rows the row itself may be missing from its own results.
            keep = np.flatnonzero(near != first_row + own)[:k]
            neighbors[own, : len(keep)] = near[keep]
            similarities[own, : len(keep)] = found_sims[i][keep]
        return neighbors, similarities


def check_neighbors(k: int, rows: int) -> None:
    """Refuse a `k` that no row can have.

    Raises:
        SettingError: k is not below the number of rows.
    """
    if k >= rows:
        raise SettingError(f"neighbors must be below the number of rows, {rows}, got {k}")


def knn_graph(x: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """Neighbor rows [n, k] of unit rows `x` [n, d], exact, in descending cosine."""
    check_neighbors(k, len(x))
    graph = ExactGraph(x.shape[1])
    graph.add(x)
    return graph.search(x, 0, k)[0]


class GraphWriter:
    """Writes the graph of a workspace's pool, part by part, with one index in memory."""

    def __init__(self, workspace: Workspace, stage: str, neighbors: int, center: bool) -> None:
        self._workspace, self._stage, self._k = workspace, stage, neighbors
        self._gradients = GradientSet(workspace, "gradients", center=center)
        self._first_rows = [0]
        for part in range(self._gradients.parts):
            x = self._gradients.read(part)
            if part == 0:
                self._graph = ExactGraph(x.shape[1])
            self._graph.add(x)
            self._first_rows.append(self._first_rows[-1] + len(x))

    def write(self, part: int) -> dict[str, Any]:
        """Write neighbors and similarities of one part's rows; returns its receipt."""
        began = time.monotonic()
        x = self._gradients.read(part)
        neighbors, similarities = self._graph.search(x, self._first_rows[part], self._k)
        name = part_name(part)
        files = {
            f"{name}.neighbors.npy": array_bytes(neighbors),
            f"{name}.similarities.npy": array_bytes(similarities),
        }
        found = neighbors >= 0
        facts = {
            "rows": len(x),
            "edges": int(found.sum()),
            "similarity_sum": float(similarities[found].sum(dtype=np.float64)),
            "seconds": round(time.monotonic() - began, 3),
        }
        return self._workspace.commit(self._stage, name, files, facts)


def read_neighbors(workspace: Workspace, stage: str) -> NDArray[np.int32]:
    """Neighbor rows [n, k] of a finished graph."""
    parts = workspace.require(stage, "graph")["parts"]
    return np.concatenate(
        [workspace.read_array(f"{stage}/{part_name(p)}.neighbors.npy") for p in range(parts)]
    )
