"""What a run of the main job has found: rows selected, losses, and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from g2is_ray.config import JointSettings
from g2is_ray.workspace.layout import BASE, JOINT, score_name, variants_in
from g2is_ray.workspace.workspace import Workspace

if TYPE_CHECKING:
    from jobs.session import Session


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """What was selected for a target, and the test losses of the models tuned on it."""

    rows: int
    supervised_tokens: int
    selected: str  # path or URL of the selected rows, as JSON lines
    losses: Mapping[str, float]  # per supervised token; base, selection and each baseline
    exact_matches: Mapping[str, float]  # fractions, likewise; empty where none are measured


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a run. As text: the selections, the test losses, and the report."""

    workspace: str
    report: str  # path or URL
    targets: Mapping[str, TargetResult]

    def __str__(self) -> str:
        selected = [
            f"{name}: {one.rows:,} rows with {one.supervised_tokens:,} supervised tokens, in "
            f"{one.selected}"
            for name, one in self.targets.items()
        ]
        losses = [
            f"{name}: {_in_words(one.losses)}" for name, one in self.targets.items() if one.losses
        ]
        lines = [f"selected   {'; '.join(selected)}"]
        if losses:
            lines.append(f"test loss  {'; '.join(losses)}. One seed: `g2is compare` adds intervals")
        else:
            lines.append("test loss  not measured: give --test NAME=FILE")
        return "\n".join([*lines, f"report     {self.report}"])


def _in_words(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())


def run(session: Session) -> RunResult:
    """Run the main job, and return what it found."""
    from jobs.main_job import run as run_stages

    run_stages(session)
    workspace = session.workspace
    joint = session.settings(JointSettings).joint
    return RunResult(
        workspace=workspace.url,
        report=workspace.storage.location("report.html"),
        targets={
            name: _target_result(workspace, name, JOINT if joint else name)
            for name in session.targets()
        },
    )


def _target_result(workspace: Workspace, target: str, main: str) -> TargetResult:
    stage = f"selections/{main}"
    selection = workspace.stage(stage).receipt()
    variants = [v for v in variants_in(workspace, target) if v.partition("@")[0] == main]
    names = {BASE: BASE} | {score_name(main, one): score_name(target, one) for one in variants}
    scores = {
        name: workspace.stage(f"evaluations/{target}").receipt(file)
        for name, file in names.items()
        if workspace.storage.exists(f"evaluations/{target}/{file}.json")
    }
    return TargetResult(
        rows=selection["selected"],
        supervised_tokens=selection["supervised_tokens"],
        selected=workspace.storage.location(f"{stage}/selected.jsonl"),
        losses={name: one["loss"] for name, one in scores.items()},
        exact_matches={
            name: one["exact_match"]
            for name, one in scores.items()
            if one["exact_match"] is not None
        },
    )
