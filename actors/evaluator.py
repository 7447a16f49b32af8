"""The actor that measures models on a target's test rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from g2is_ray.config import EvaluateSettings, ExecutionSettings, ModelSettings
from g2is_ray.models import loading
from g2is_ray.training.evaluation import Evaluation
from g2is_ray.workspace.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model to measure: the base model, or an adapter on it."""

    name: str
    adapter: str = ""  # folder in the workspace
    fingerprint: str = ""  # of the stage that made the adapter

    def is_done(self, receipt: dict[str, Any]) -> bool:
        """Whether the receipt is of this adapter, not of an earlier one of the same name."""
        return receipt["fingerprint"] == self.fingerprint

    def __str__(self) -> str:
        return self.name


class Evaluator:
    """Holds the base model; puts one adapter after another on it and measures."""

    def __init__(
        self,
        url: str,
        target: str,
        model: ModelSettings,
        evaluate: EvaluateSettings,
        execution: ExecutionSettings,
        max_tokens: int,
    ) -> None:
        self._workspace = Workspace(url)
        self._target, self._model, self._max_tokens = target, model, max_tokens
        self._evaluate, self._execution = evaluate, execution

    @cached_property
    def _evaluation(self) -> Evaluation:
        return Evaluation.of_target(
            self._workspace,
            self._target,
            self._model,
            self._evaluate,
            self._execution,
            self._max_tokens,
        )

    def process(self, item: Measured) -> dict[str, Any]:
        """Measure one model; returns its receipt, which holds the scores."""
        began = time.monotonic()
        model: Any = loading.load_base(
            self._model, loading.default_device(), self._execution.attention
        )
        if item.adapter:
            with self._workspace.local_folder(item.adapter) as folder:
                model = loading.load_adapter(model, folder)
        facts = self._evaluation.measure(model).facts()
        facts["fingerprint"] = item.fingerprint
        facts["seconds"] = round(time.monotonic() - began, 3)
        return self._workspace.commit(f"evaluations/{self._target}", item.name, {}, facts)
