"""The actors that compute features: gradients or embeddings."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any, ClassVar

from g2is_ray.features.embeddings import EmbeddingWriter
from g2is_ray.features.gradient_writer import GradientWriter
from g2is_ray.features.writer import FeaturePart, FeatureWriter
from g2is_ray.training import imported
from g2is_ray.workspace.workspace import Workspace


class FeatureWorker:
    """Holds one model on its GPU and writes the features of the parts it is given.

    The model is loaded with the first part, so that why it cannot be loaded reaches the
    driver as that part's error. Two threads may call `process` at once.
    """

    writer: ClassVar[type[FeatureWriter]]

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        self._url, self._settings = url, settings
        self._loading = threading.Lock()

    @cached_property
    def _loaded(self) -> FeatureWriter:
        return self.writer(Workspace(self._url), **self._settings)

    def process(self, part: FeaturePart) -> dict[str, Any]:
        """Write the features of one part; returns its receipt."""
        with self._loading:  # once
            writer = self._loaded
        return writer.write(part)


class ImportChecker:
    """Measures what an imported adapter does on the workspace's model."""

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        self._url, self._settings = url, settings

    def process(self, name: str) -> dict[str, Any]:
        """Write the receipt of that name; returns it."""
        return imported.measure(Workspace(self._url), **self._settings)


class GradientWorker(FeatureWorker):
    """Writes gradients."""

    writer = GradientWriter


class EmbeddingWorker(FeatureWorker):
    """Writes embeddings."""

    writer = EmbeddingWriter
