"""The actor that runs trials."""

from __future__ import annotations

from typing import Any

from g2is_ray.comparison.trials import Trial, TrialRunner
from g2is_ray.workspace.workspace import Workspace


class TrialWorker:
    """Tunes and measures one trial after another on its GPU."""

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        self._runner = TrialRunner(Workspace(url), **settings)

    def process(self, trial: Trial) -> dict[str, Any]:
        """Run one trial; returns its receipt."""
        return self._runner.run(trial)
