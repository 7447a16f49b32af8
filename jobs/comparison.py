"""Compare methods: select with each, tune on what it selected, and measure, for several seeds."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.workers import TrialOrder, TrialWorker
from g2is_ray.comparison.comparison import Comparison, Trials, collect
from g2is_ray.comparison.trials import Trial
from g2is_ray.config import (
    BudgetSettings,
    EvaluateSettings,
    SeedSettings,
    TuneSettings,
    as_dict,
)
from g2is_ray.data.examples import ExampleSet
from g2is_ray.errors import SettingError
from g2is_ray.report.comparison_page import render_comparison
from g2is_ray.selection.budget import token_budget
from g2is_ray.selection.task import Task
from g2is_ray.selector.methods import CompareSettings, Method, methods_of
from g2is_ray.training.plans import tuning_plan
from g2is_ray.workspace.layout import POOL, comparison_file, comparison_stage
from jobs.ingest import pool_settings
from jobs.model import lora_settings
from jobs.parts import StageWorkers
from jobs.selection import make_selections, task_of
from jobs.session import Session

log = logging.getLogger(__name__)


def compare(session: Session) -> Comparison:
    """Write `comparisons/TOKENS/T` for each target T, and all numbers as JSON and as a page."""
    settings = session.settings(CompareSettings)
    methods = methods_of("methods", settings.methods)
    _check(session, settings, methods)
    tokens = ExampleSet(session.workspace, POOL).supervised_tokens()
    amount = _budget(session, tokens)
    tasks = {
        (target, method.name): _tasks(session, target, amount, method, settings.seeds)
        for target in session.targets()
        for method in methods
    }
    selections = {task.stage: task for each in tasks.values() for task in each}
    make_selections(session, list(selections.values()))
    trials = _trials(session, tasks, settings.seeds, amount)
    _run(session, trials, rows=amount / tokens[tokens > 0].mean())
    found = collect(
        session.workspace,
        trials,
        budget_tokens=amount,
        pool_tokens=int(tokens.sum()),
        seeds=settings.seeds,
        reference=settings.reference,
    )
    session.workspace.storage.write_json(comparison_file(amount, "json"), dataclasses.asdict(found))
    page = comparison_file(amount, "html")
    session.workspace.storage.write_bytes(page, render_comparison(found).encode())
    log.info("compare: %s", session.workspace.storage.location(page))
    return found


def _check(session: Session, settings: CompareSettings, methods: Sequence[Method]) -> None:
    names = [method.name for method in methods]
    if settings.reference not in names:
        raise SettingError(
            f"reference {settings.reference} is not one of the methods: {', '.join(names)}; set "
            "reference to one of them"
        )
    for target in session.targets():
        if not session.workspace.storage.exists(f"targets/{target}/test/receipt.json"):
            raise SettingError(
                f"target {target} has no test rows to compare with: give --test {target}=FILE to "
                "`g2is ingest`"
            )


def _budget(session: Session, tokens: NDArray[np.int64]) -> int:
    """Return how many supervised tokens each method may select; the rows have `tokens` [n]."""
    stages = [f"selections/{target}" for target in session.targets()]
    given = session.settings(BudgetSettings, *stages)
    return token_budget(tokens, given.budget_tokens or int(given.fraction * tokens.sum())).amount


def _tasks(
    session: Session, target: str, amount: int, method: Method, seeds: Sequence[int]
) -> list[Task]:
    """Return a method's selection task for each seed; all equal if its selector ignores seeds."""
    stage = f"{comparison_stage(amount, target)}/selections/{method.name}"
    task = task_of(session, target, method, stage=stage)
    budget = dataclasses.replace(task.budget, budget_tokens=amount)
    task = dataclasses.replace(task, budget=budget, remember={**task.remember, **as_dict(budget)})
    return [
        dataclasses.replace(
            task,
            stage=f"{stage}-{seed}" if "seed" in task.reads else stage,
            seed=SeedSettings(seed=seed),
        )
        for seed in seeds
    ]


def _trials(
    session: Session,
    tasks: Mapping[tuple[str, str], Sequence[Task]],
    seeds: Sequence[int],
    amount: int,
) -> Mapping[str, Trials]:
    """Return the trials of each target and method."""
    trials: dict[str, dict[str, list[Trial]]] = {target: {} for target, _ in tasks}
    for (target, method), each in tasks.items():
        trials[target][method] = [
            Trial(
                stage=f"{comparison_stage(amount, target)}/trials",
                target=target,
                method=method,
                seed=seed,
                selection=task.stage,
                fingerprint=session.workspace.stage(task.stage).fingerprint(),
            )
            for seed, task in zip(seeds, each, strict=True)
        ]
    return trials


def _run(session: Session, trials: Mapping[str, Trials], rows: float) -> None:
    """Run trials without a receipt, the first seed of all methods first.

    Args:
        rows: number of rows of average length that the budget allows, which determines the number
            of optimizer steps.
    """
    model, read, _ = pool_settings(session)
    stages = {target: next(iter(own.values()))[0].stage for target, own in trials.items()}
    first, stage = next(iter(stages.items()))
    lora = lora_settings(session, model, stage, "warmup")
    tune = session.settings(TuneSettings, stage, f"tuned/{first}")
    plan = dataclasses.replace(  # each trial replaces the seed
        tuning_plan(model, lora, tune, max_tokens=read.max_tokens, seed=0),
        steps_per_epoch=math.ceil(rows / tune.tune_batch_size),
    )
    evaluate = {}
    for target, stage in stages.items():
        evaluate[target] = session.settings(EvaluateSettings, stage, f"evaluations/{target}")
        session.begin(
            stage,
            *(model, lora, tune, evaluate[target]),
            inputs=[f"targets/{target}/test"],
            facts={"steps_per_epoch": plan.steps_per_epoch},
        )
    bases = [Trial(stage=stage, target=target) for target, stage in stages.items()]
    by_seed = zip(*(each for own in trials.values() for each in own.values()), strict=True)
    tuned = [trial for each in by_seed for trial in each]
    order = TrialOrder(
        url=session.workspace.storage.location(""),
        model=model,
        plan=plan,
        evaluate=evaluate,
        execution=session.execution,
    )
    receipts: dict[Trial, dict[str, Any]] = {}
    with StageWorkers(session, TrialWorker, order, session.execution.workers) as workers:
        for every in (bases, tuned):  # apart, or short trials would make long ones look hung
            items = {trial: (trial.stage, trial.name) for trial in every}
            receipts |= workers.finish(items, "compare", is_current=Trial.is_done)
    for stage in stages.values():
        own = [receipt for trial, receipt in receipts.items() if trial.stage == stage]
        seconds = round(sum(receipt["seconds"] for receipt in own), 3)
        session.workspace.stage(stage).conclude({"trials": len(own), "seconds": seconds})
        if cut := sum(receipt.get("cut_replies", 0) for receipt in own):
            log.warning(
                "%s: %d of %d replies reach max_new_tokens before they end, so their answers may "
                "be missing; raise max_new_tokens",
                *(stage, cut, sum(receipt["exact_match_rows"] for receipt in own)),
            )
