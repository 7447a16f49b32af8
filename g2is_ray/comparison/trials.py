"""Trials: a model tuned on one selection and measured on a target's test rows.

`g2is compare` runs a trial per method, seed and target. A trial keeps the scores of each row and
the metrics of its training, and discards its adapter.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.trainer_callback import PrinterCallback

from g2is_ray.config import EvaluateSettings, ExecutionSettings, ModelSettings, TrainingPlan
from g2is_ray.models import loading
from g2is_ray.selection.files import read_rows
from g2is_ray.training.evaluation import Evaluation, Scores
from g2is_ray.training.tuning import TunedModel
from g2is_ray.workspace import scratch
from g2is_ray.workspace.layout import BASE
from g2is_ray.workspace.storage import array_bytes
from g2is_ray.workspace.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A selection to tune on with a seed, and a target to measure on; or the untuned model."""

    stage: str  # shared by all trials of a target
    target: str
    method: str = BASE
    seed: int = 0
    selection: str = ""  # stage; none for the untuned model
    fingerprint: str = ""  # of the selection

    @property
    def name(self) -> str:
        """Name of the trial's receipt."""
        return f"{self.method}-{self.seed}" if self.selection else BASE

    def is_done(self, receipt: dict[str, Any]) -> bool:
        """Whether a receipt belongs to this selection, not to an earlier one of the method."""
        return receipt["fingerprint"] == self.fingerprint

    def __str__(self) -> str:
        return f"{self.stage}/{self.name}"


class TrialRunner:
    """Runs one trial after another.

    Args:
        plan: of every training; each trial replaces the seed.
        evaluate: how to measure on each target.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        model: ModelSettings,
        plan: TrainingPlan,
        evaluate: Mapping[str, EvaluateSettings],
        execution: ExecutionSettings,
    ) -> None:
        self._workspace, self._model, self._plan = workspace, model, plan
        self._evaluate, self._execution = evaluate, execution
        self._evaluations: dict[str, Evaluation] = {}

    def run(self, trial: Trial) -> dict[str, Any]:
        """Tune and measure, and write the scores; returns the trial's receipt."""
        began = time.monotonic()
        model, facts = self._tuned(trial) if trial.selection else (self._base(), {})
        scores = self._evaluation(trial.target).measure(model)
        facts |= scores.facts() | {
            "fingerprint": trial.fingerprint,
            "device": loading.default_device().type,
            "seconds": round(time.monotonic() - began, 3),
        }
        files = {f"{trial.name}.scores.npy": array_bytes(_as_array(scores))}
        return self._workspace.stage(trial.stage).commit(trial.name, files, facts)

    def _base(self) -> Any:
        device = loading.default_device()
        return loading.load_base(self._model, device, self._execution.attention)

    def _tuned(self, trial: Trial) -> tuple[Any, dict[str, Any]]:
        rows = read_rows(self._workspace, trial.selection)
        with scratch.folder() as temporary:
            tuned = TunedModel(
                self._workspace,
                str(trial),
                dataclasses.replace(self._plan, seed=trial.seed),
                rows,
                self._execution,
                scratch=temporary,
            )
            tuned.trainer.remove_callback(PrinterCallback)  # metrics.jsonl has the metrics
            tuned.train()
        model, facts = tuned.model(), tuned.facts()
        model.gradient_checkpointing_disable()  # it would prevent caching in generation
        return model, facts | {"tune_seconds": facts["seconds"]}

    def _evaluation(self, target: str) -> Evaluation:
        if target not in self._evaluations:
            self._evaluations[target] = Evaluation.of_target(
                self._workspace,
                target,
                self._model,
                self._evaluate[target],
                self._execution,
                self._plan.max_tokens,
            )
        return self._evaluations[target]


def _as_array(scores: Scores) -> np.ndarray:
    return np.stack([scores.losses, scores.tokens, scores.right], axis=1)


def read_scores(workspace: Workspace, trial: Trial) -> Scores:
    """Return the scores of a finished trial."""
    losses, tokens, right = workspace.storage.read_array(f"{trial.stage}/{trial.name}.scores.npy").T
    return Scores(losses=losses, tokens=tokens.astype(np.int64), right=right)
