"""Settings of the main job, and which stages of a workspace remember which of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from g2is_ray.config import (
    BudgetSettings,
    EvaluateSettings,
    ExecutionSettings,
    GradientSettings,
    GraphSettings,
    JointSettings,
    LoraSettings,
    ModelSettings,
    PoolSettings,
    ReadSettings,
    RedoSettings,
    SeedSettings,
    TargetSettings,
    TuneSettings,
    WalkSettings,
    WarmupSettings,
)
from g2is_ray.selector.methods import BaselineSettings, SelectorSettings
from g2is_ray.workspace.layout import GRADIENTS, GRAPH_KINDS, POOL, WARMUP, graph_stage

INGEST = (ModelSettings, PoolSettings, TargetSettings, ReadSettings, SeedSettings, RedoSettings)
RUN = (
    *INGEST,
    *(LoraSettings, WarmupSettings, GradientSettings, GraphSettings, SelectorSettings),
    *(
        BudgetSettings,
        WalkSettings,
        JointSettings,
        BaselineSettings,
        TuneSettings,
        EvaluateSettings,
    ),
    ExecutionSettings,
)
"""Classes of the settings of `g2is ingest` and of `g2is run`, the main job."""

NEVER_REMEMBERED = (RedoSettings, ExecutionSettings)

_REMEMBERED_BY: dict[str, tuple[type, ...]] = {
    "comparisons": (LoraSettings, TuneSettings, EvaluateSettings),
    "evaluations": (EvaluateSettings,),
    "tuned": (TuneSettings,),
    "selections": (
        *(
            GraphSettings,
            SelectorSettings,
            BudgetSettings,
            WalkSettings,
            JointSettings,
            BaselineSettings,
        ),
    ),
    "graph": (GraphSettings,),
    GRADIENTS: (GradientSettings,),
    WARMUP: (LoraSettings, WarmupSettings),
    POOL: (ModelSettings, PoolSettings, ReadSettings, SeedSettings),
}
"""Settings that a command takes from each kind of stage. If two kinds remember a setting, the
first one counts. Targets remember their files, which only `Session.sources` asks for."""


def is_remembered(cls: type) -> bool:
    """Whether some stage may remember settings of type `cls`."""
    return any(cls in classes for classes in _REMEMBERED_BY.values())


def stages_remembering(cls: type, names: Sequence[str], known: Mapping[str, Any]) -> Iterator[str]:
    """Stages that may remember settings of type `cls`; the first one that does so counts.

    Args:
        names: targets or variants that the settings are for, or a comparison's trials of them.
        known: stages of the workspace.
    """
    for kind, classes in _REMEMBERED_BY.items():
        if cls in classes:
            yield from _stages(kind, names, known)


def _stages(kind: str, names: Sequence[str], known: Mapping[str, Any]) -> Iterator[str]:
    """Stages of a kind that belong to the names, or to the whole workspace."""
    if kind in (GRADIENTS, WARMUP, POOL):
        yield kind
    elif kind == "graph":
        yield from [stage for one in GRAPH_KINDS if (stage := graph_stage(*one)) in known][:1]
    elif kind == "comparisons":
        yield from (name for name in names if name.startswith("comparisons/"))
    else:
        for name in names:
            variant = name.removeprefix(f"{kind}/")
            main = variant.partition("@")[0]  # the selection that the variant is compared with
            yield from dict.fromkeys((f"{kind}/{variant}", f"{kind}/{main}"))
