"""What the grid measures: targets, pools, methods, budgets and seeds, and their order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from g2is_ray.config import (
    ExecutionSettings,
    GradientSettings,
    LoraSettings,
    ModelSettings,
    ReadSettings,
    TrainingPlan,
    WarmupSettings,
)

HERE = Path(__file__).resolve().parents[1]  # benchmarks/
DEFAULT, REFERENCE = "facility-location", "random"
FIRST = (REFERENCE, DEFAULT, "less", "rds", "tfidf")
THEN = ("less-round-robin", "walk", "paper")
LATER = ("gist", "graph-diverse", "bm25")
METHODS = {name: name for name in (*FIRST, *THEN, *LATER)} | {
    "short": f"short={HERE / 'short_answers.py'}:ShortAnswers",
    "facility-location-e": "facility-location-e=facility-location,features=embeddings",
}
"""Each method as `g2is compare --methods` takes it."""

LEVELS = {"none": 0.0, "rare": 0.02, "common": 0.2}
"""Share of a pool's rows that are of the target's own kind, or as many rows as there are."""


@dataclass(frozen=True, kw_only=True)
class TargetKind:
    """A target, and the pool's sources that hold its own kind."""

    name: str
    sources: tuple[str, ...]
    chose: bool  # whether the default was chosen on this target's test rows

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(LEVELS) if self.sources else ("none",)


TARGETS = {
    target.name: target
    for target in (
        TargetKind(name="gsm8k", sources=("gsm8k",), chose=True),
        TargetKind(name="sql", sources=("spider", "wikisql"), chose=False),
        TargetKind(name="ecqa", sources=("cot-ecqa",), chose=False),
        TargetKind(name="boolq", sources=("boolq",), chose=False),
        TargetKind(name="bbh", sources=(), chose=True),
        TargetKind(name="sensemaking", sources=("cot-sensemaking",), chose=False),
        TargetKind(name="finance", sources=("tatqa",), chose=False),
    )
}
"""gsm8k, sql and finance have files of rows; bbh is made of its test rows; rows of the others are
held out of the pool. tiny-lm was not trained on any of these sources."""

OTHERS = ("alpaca-gpt4-zh",)
"""Sources that no pool has: tiny-lm reads Chinese byte by byte, so that 2% of the rows would be a
tenth of the tokens, and of what random rows teach."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is; smaller for a dry run."""

    pool_rows: int = 10_000
    target_rows: int = 64
    test_rows: int = 200
    general_rows: int = 100

    def own_rows(self, level: str) -> int:
        return round(LEVELS[level] * self.pool_rows)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a method may select: a share of the pool's supervised tokens, or of its rows."""

    unit: str  # tokens or rows
    share: float

    def __str__(self) -> str:
        return f"{self.unit}-{self.share:g}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the library, the same for all that is measured."""

    model: ModelSettings
    read: ReadSettings = field(default_factory=lambda: ReadSettings(max_tokens=768, part_rows=200))
    lora: LoraSettings = field(default_factory=lambda: LoraSettings(lora_r=8, lora_alpha=32))
    warmup: WarmupSettings = field(
        default_factory=lambda: WarmupSettings(warmup_learning_rate=1e-3)
    )
    gradients: GradientSettings = field(default_factory=GradientSettings)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    neighbors: int = 32
    epochs: int = 2
    learning_rate: float = 3e-3
    batch_size: int = 16

    def tuning(self, seed: int, rows: float) -> TrainingPlan:
        """As `g2is compare` tunes: equal optimizer steps, `rows` being a budget in mean rows."""
        return TrainingPlan(
            model=self.model,
            lora=self.lora,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            schedule="cosine",
            max_tokens=self.read.max_tokens,
            seed=seed,
            steps_per_epoch=-int(-rows // self.batch_size),
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A target and how much of its own kind the pool holds."""

    target: str
    level: str

    def __str__(self) -> str:
        return f"{self.target}/{self.level}"


@dataclass(frozen=True, kw_only=True)
class TrialKey:
    """What names a trial."""

    cell: Cell
    budget: Budget
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.cell}/{self.budget}/{self.method}-{self.seed}"


def cells(level: str) -> list[Cell]:
    """All targets, each with the level, or with none where the pool has nothing of its kind."""
    return [
        Cell(target=name, level=level if kind.sources else "none")
        for name, kind in TARGETS.items()
        if kind.sources or level == "rare"  # once
    ]


def all_trials(seeds: int = 5) -> Iterator[TrialKey]:
    """Every trial of the grid, the most informative first.

    A slice over all targets comes before more seeds, and 1% before 5%, which takes five times as
    long.
    """
    main, rest = (FIRST, THEN), (tuple(name for name in METHODS if name not in FIRST + THEN),)
    small, large = Budget(unit="tokens", share=0.01), Budget(unit="tokens", share=0.05)
    first, more, every = range(1), range(1, seeds), range(seeds)
    steps = [(small, main, first), (large, main, first), (small, main, more), (large, main, more)]
    steps += [(small, rest, every), (large, rest, every)]
    for budget in (small, large):
        steps.append((Budget(unit="rows", share=budget.share), (*main, *rest), every))
    for budget, groups, own in steps:
        for seed, level, methods in itertools.product(own, ("rare", "none", "common"), groups):
            for cell, method in itertools.product(cells(level), methods):
                yield TrialKey(cell=cell, budget=budget, method=method, seed=seed)
