"""The actor that computes gradients."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from g2is_ray.features import GradientWriter
from g2is_ray.workspace import Workspace


class GradientWorker:
    """Holds one model on its GPU and writes the gradients of the parts it is given.

    The model is loaded with the first part, so that a part's error reaches the driver.
    """

    def __init__(self, url: str, examples: str, stage: str, settings: dict[str, Any]) -> None:
        self._url, self._examples, self._stage, self._settings = url, examples, stage, settings

    @cached_property
    def _writer(self) -> GradientWriter:
        return GradientWriter(Workspace(self._url), **self._settings)

    def process(self, part: int) -> dict[str, Any]:
        """Write the gradients of one part; returns its receipt."""
        return self._writer.write(self._examples, self._stage, part)
