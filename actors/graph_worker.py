"""The FAISS-backed actor that finds neighbors."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from g2is_ray.config import GraphSettings
from g2is_ray.graph.builder import GraphBuilder
from g2is_ray.graph.plan import GraphTask
from g2is_ray.workspace.workspace import Workspace


class GraphWorker:
    """Holds a group of the pool's features, on its GPU if it has one, and finds neighbors."""

    def __init__(self, url: str, stage: str, settings: GraphSettings) -> None:
        self._url, self._stage, self._settings = url, stage, settings

    @cached_property
    def _builder(self) -> GraphBuilder:
        return GraphBuilder(Workspace(self._url), self._stage, self._settings)

    def process(self, task: GraphTask) -> dict[str, Any]:
        """Do one piece of the graph; returns its receipt."""
        return self._builder.do(task)
