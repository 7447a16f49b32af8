"""The FAISS-backed actor that finds neighbors."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from g2is_ray.graph import GraphWriter
from g2is_ray.workspace import Workspace


class GraphWorker:
    """Holds the pool's gradients in a FAISS index and writes the neighbors of parts."""

    def __init__(self, url: str, stage: str, neighbors: int, center: bool) -> None:
        self._url, self._stage = url, stage
        self._neighbors, self._center = neighbors, center

    @cached_property
    def _writer(self) -> GraphWriter:
        return GraphWriter(Workspace(self._url), self._stage, self._neighbors, self._center)

    def process(self, part: int) -> dict[str, Any]:
        """Write the neighbors of one part; returns its receipt."""
        return self._writer.write(part)
