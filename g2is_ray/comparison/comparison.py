"""Collects a comparison of methods: scores over seeds, paired differences, costs and picks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

import g2is_ray
from g2is_ray.comparison.significance import CONFIDENCE, Interval, paired_interval
from g2is_ray.comparison.trials import Trial, read_scores
from g2is_ray.contamination.stage import notes, rows_like_tests_if_compared
from g2is_ray.data.examples import ExampleSet
from g2is_ray.selection.files import read_rows
from g2is_ray.selection.lift import own_share
from g2is_ray.workspace.layout import OVERLAP, POOL, model_name
from g2is_ray.workspace.provenance import now, this_machine
from g2is_ray.workspace.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Time and storage of a selection and of the stages it uses; shared stages count in full."""

    seconds: float  # summed over workers
    gpu_seconds: float
    stored_bytes: int


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One method on one target; means are over seeds."""

    name: str
    settings: Mapping[str, Any]  # of the selection
    losses: Sequence[float]  # per supervised token, one for each seed
    exact_matches: Sequence[float]  # one for each seed; empty if rows have no answers
    to_reference: Interval | None  # loss minus the reference's; None for the reference
    exact_match_to_reference: Interval | None
    rows: float
    train_tokens: float  # supervised, over all epochs
    steps: int
    row_tokens: Sequence[float]  # 10th, 50th and 90th percentile of a row's length
    own_share: float | None  # see `selection.lift.own_share`
    sources: float
    cost: Cost
    tune_seconds: float  # mean of a tuning
    like_tests: float = 0  # selected rows that are like test rows

    @property
    def loss(self) -> float:
        """Mean loss over seeds."""
        return fmean(self.losses)

    @property
    def loss_sd(self) -> float:
        """Standard deviation of the loss over seeds; NaN with one seed."""
        return float(np.std(self.losses, ddof=1)) if len(self.losses) > 1 else math.nan

    @property
    def exact_match(self) -> float | None:
        """Mean exact match over seeds; None if rows have no answers."""
        return fmean(self.exact_matches) if self.exact_matches else None


@dataclass(frozen=True, kw_only=True)
class TargetComparison:
    """All methods on one target; the best is first."""

    target: str
    test_rows: int
    test_tokens: int
    exact_match_rows: int
    base_loss: float
    base_exact_match: float | None
    methods: Sequence[MethodRow]
    differences: Mapping[str, Mapping[str, Interval]]  # [a][b]: loss of a minus that of b
    overlaps: Mapping[str, Mapping[str, float]]  # [a][b]: share of a's rows that b has too
    notes: Sequence[str] = ()  # about test rows in the pool and among target rows


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison under one budget, for several targets."""

    budget_tokens: int
    pool_rows: int
    pool_tokens: int  # supervised
    seeds: Sequence[int]
    reference: str
    model: str
    settings: Mapping[str, Any]  # of tuning and evaluation
    version: str
    created: str
    machine: str
    targets: Sequence[TargetComparison]

    def __str__(self) -> str:
        return table(self)


Trials = Mapping[str, Sequence[Trial]]
"""The trials of each method, one for each seed, in the order of the seeds."""


def collect(
    workspace: Workspace,
    trials: Mapping[str, Trials],
    *,
    budget_tokens: int,
    pool_tokens: int,
    seeds: Sequence[int],
    reference: str,
) -> Comparison:
    """Collect a comparison from finished trials.

    Args:
        workspace: read from.
        trials: finished trials of each target, by method; the untuned model has one too.
        budget_tokens: supervised tokens of each selection.
        pool_tokens: supervised tokens of the pool.
        seeds: of the trials, in their order.
        reference: the method that others are compared with.

    Raises:
        WorkspaceError: a receipt or a file of scores is missing or damaged.
    """
    pool = _Pool(workspace)
    stages = workspace.stages()
    costs = _Costs(workspace, stages)
    first_trials = [next(iter(by_method.values()))[0] for by_method in trials.values()]
    return Comparison(
        budget_tokens=budget_tokens,
        pool_rows=len(pool.groups),
        pool_tokens=pool_tokens,
        seeds=seeds,
        reference=reference,
        model=model_name(stages),
        settings=_common(stages[one.stage]["settings"] for one in first_trials),
        version=g2is_ray.__version__,
        created=now(),
        machine=this_machine(),
        targets=[
            _TargetTrials(workspace, stages, pool, costs, target, by_method, reference).compare()
            for target, by_method in trials.items()
        ],
    )


def _common(settings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings that are equal for all targets."""
    first, *rest = settings
    return {name: value for name, value in first.items() if all(o[name] == value for o in rest)}


class _Pool:
    """Source and length of each pool row."""

    def __init__(self, workspace: Workspace) -> None:
        held = list(ExampleSet(workspace, POOL).read_all(["group", "tokens"]))
        self.groups = [row["group"] for row in held]
        self.group_rows = Counter(self.groups)
        self.tokens = np.array([row["tokens"] for row in held])
        self.like_tests = rows_like_tests_if_compared(workspace)


class _TargetTrials:
    """The scores and picks of one target's trials."""

    def __init__(
        self,
        workspace: Workspace,
        stages: Mapping[str, Any],
        pool: _Pool,
        costs: _Costs,
        target: str,
        trials: Trials,
        reference: str,
    ) -> None:
        self._workspace, self._stages = workspace, stages
        self._pool, self._costs, self._target = pool, costs, target
        self._trials, self._reference = trials, reference
        base = Trial(stage=next(iter(trials.values()))[0].stage, target=target)
        self._base = read_scores(workspace, base)
        self._scores = {
            name: [read_scores(workspace, trial) for trial in seeds]
            for name, seeds in trials.items()
        }
        self._picks = {
            name: [read_rows(workspace, trial.selection) for trial in seeds]
            for name, seeds in trials.items()
        }
        val = ExampleSet(workspace, f"targets/{target}/val")
        self._groups = {row["group"] for row in val.read_all(["group"])}

    def compare(self) -> TargetComparison:
        base = self._base.facts()
        rows = [self._row(name) for name in self._trials]
        names = list(self._trials)
        return TargetComparison(
            target=self._target,
            test_rows=len(self._base.tokens),
            test_tokens=base["test_tokens"],
            exact_match_rows=base["exact_match_rows"],
            base_loss=base["loss"],
            base_exact_match=base["exact_match"],
            methods=sorted(rows, key=lambda row: (math.isnan(row.loss), row.loss)),
            differences={a: {b: self._loss_difference(a, b) for b in names} for a in names},
            notes=notes(self._workspace, self._target),
            overlaps={a: {b: self._overlap(a, b) for b in names} for a in names},
        )

    def _row(self, name: str) -> MethodRow:
        trials, scores, picks = self._trials[name], self._scores[name], self._picks[name]
        is_reference = name == self._reference
        receipts = [
            self._workspace.stage(trial.stage).require_piece(trial.name) for trial in trials
        ]
        facts = [one.facts() for one in scores]
        asked = facts[0]["exact_match"] is not None
        groups = [Counter(self._pool.groups[row] for row in rows) for rows in picks]
        shares = [own_share(one, self._pool.group_rows, self._groups) for one in groups]
        lengths = self._pool.tokens[np.concatenate(picks)]
        return MethodRow(
            name=name,
            settings=self._stages[trials[0].selection]["settings"],
            losses=[one["loss"] for one in facts],
            exact_matches=[one["exact_match"] for one in facts] if asked else [],
            to_reference=None if is_reference else self._loss_difference(name, self._reference),
            exact_match_to_reference=(
                self._match_difference(name, self._reference)
                if asked and not is_reference
                else None
            ),
            rows=fmean(map(len, picks)),
            train_tokens=fmean(one["train_tokens"] for one in receipts),
            steps=receipts[0]["steps"],
            row_tokens=np.percentile(lengths, [10, 50, 90]).tolist(),
            own_share=_mean(shares),
            sources=fmean(len(one) for one in groups),
            cost=self._costs.of(trials[0].selection),
            tune_seconds=fmean(one["tune_seconds"] for one in receipts),
            like_tests=fmean(int(self._pool.like_tests[rows].sum()) for rows in picks),
        )

    def _loss_difference(self, ours: str, theirs: str) -> Interval:
        pairs = zip(self._scores[ours], self._scores[theirs], strict=True)
        differences = np.stack([a.losses - b.losses for a, b in pairs])
        return paired_interval(differences, self._base.tokens)

    def _match_difference(self, ours: str, theirs: str) -> Interval:
        asked = ~np.isnan(self._base.right)
        pairs = zip(self._scores[ours], self._scores[theirs], strict=True)
        differences = np.stack([(a.right - b.right)[asked] for a, b in pairs])
        return paired_interval(differences, np.ones(asked.sum()))

    def _overlap(self, ours: str, theirs: str) -> float:
        pairs = zip(self._picks[ours], self._picks[theirs], strict=True)
        return fmean(len(set(a) & set(b)) / max(1, len(a)) for a, b in pairs)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


class _Costs:
    """Costs of selections; the receipts of a shared stage are read once."""

    def __init__(self, workspace: Workspace, stages: Mapping[str, Any]) -> None:
        self._workspace, self._stages = workspace, stages
        self._known: dict[str, Cost] = {}

    def of(self, stage: str) -> Cost:
        """Return the cost of a selection and of all stages that it uses, except reading data."""
        todo, seen = [stage], set()
        while todo:
            name = todo.pop()
            if (
                name not in seen
                and name not in (POOL, OVERLAP)
                and not name.endswith(("/val", "/test"))
            ):
                seen.add(name)
                todo += self._stages.get(name, {}).get("inputs", ())
        for name in seen - self._known.keys():
            self._known[name] = _stage_cost(self._workspace, name)
        costs = [self._known[name] for name in sorted(seen)]
        return Cost(
            seconds=sum(one.seconds for one in costs),
            gpu_seconds=sum(one.gpu_seconds for one in costs),
            stored_bytes=sum(one.stored_bytes for one in costs),
        )


def _stage_cost(workspace: Workspace, stage: str) -> Cost:
    seconds = workspace.stage(stage).receipt()["seconds"]
    stored, on_gpu = 0, False
    for name in workspace.storage.names(stage):
        receipt = workspace.storage.read_json(f"{stage}/{name}") if name.endswith(".json") else None
        if isinstance(receipt, dict):
            with workspace.storage.understanding(f"{stage}/{name}"):
                stored += sum(held["bytes"] for held in receipt.get("files", {}).values())
                on_gpu |= receipt.get("device") == "cuda"
    return Cost(seconds=seconds, gpu_seconds=on_gpu * seconds, stored_bytes=stored)


def table(comparison: Comparison) -> str:
    """Return the losses as lines of text; the best method is first."""
    lines = []
    for one in comparison.targets:
        lines += [
            "",
            f"{one.target}: {one.test_rows} test rows, loss per supervised token, "
            f"{len(comparison.seeds)} seeds; difference to {comparison.reference} with its "
            f"{CONFIDENCE:.0%} interval",
            f"{'':24} {'loss':>8} {'sd':>7} {'difference':>27} {'exact match':>12} {'rows':>7}",
            f"{'not tuned':24} {one.base_loss:8.4f} {'':7} {'':27} {_share(one.base_exact_match)}",
        ]
        for row in one.methods:
            lines.append(
                f"{row.name:24} {row.loss:8.4f} {row.loss_sd:7.4f} {_interval(row.to_reference)} "
                f"{_share(row.exact_match)} {row.rows:7.0f}"
            )
        lines += one.notes
        lines += [
            f"{row.name}: {row.like_tests:.0f} of its {row.rows:.0f} rows are like test rows"
            for row in one.methods
            if row.like_tests
        ]
    return "\n".join(lines)


def _interval(one: Interval | None) -> str:
    if one is None:
        return " " * 27
    return f"{one.mean:+.4f} ({one.low:+.4f} to {one.high:+.4f})".rjust(27)


def _share(value: float | None) -> str:
    return f"{'' if value is None else f'{value:.1%}':>12}"
