"""The actor that computes gradients."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

from g2is_ray.gradient_writer import GradientPart, GradientWriter
from g2is_ray.workspace import Workspace


class GradientWorker:
    """Holds one model on its GPU and writes the gradients of the parts it is given.

    The model is loaded with the first part, so that why it cannot be loaded reaches the
    driver as that part's error. Two threads may call `process` at once.
    """

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        self._url, self._settings = url, settings
        self._loading = threading.Lock()

    @cached_property
    def _loaded(self) -> GradientWriter:
        return GradientWriter(Workspace(self._url), **self._settings)

    def process(self, part: GradientPart) -> dict[str, Any]:
        """Write the gradients of one part; returns its receipt."""
        with self._loading:  # once
            writer = self._loaded
        return writer.write(part)
