"""Select rows of the pool for each target: the walk, and what it is compared with."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from g2is_ray.config import (
    PRESETS,
    ComparisonSettings,
    GraphSettings,
    JointSettings,
    WalkSettings,
    as_dict,
    build,
)
from g2is_ray.errors import SettingError
from g2is_ray.examples import ExampleSet
from g2is_ray.features import GradientSet
from g2is_ray.knowledge import CoreKnowledge, joint_knowledge
from g2is_ray.layout import JOINT, graph_stage
from g2is_ray.rows import map_neighbors
from g2is_ray.selection import carry_out, knowledge_of, pick_lines
from g2is_ray.walk import Pick, align
from g2is_ray.workspace import STAGE_RECEIPT, Workspace
from jobs.graph import graph_settings
from jobs.ingest import pool_settings
from jobs.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A selection to be made by a walk: for one target, or for several together."""

    name: str  # the target, or joint
    variant: str
    target_weights: dict[str, float]
    graph: GraphSettings
    walk: WalkSettings

    @property
    def stage(self) -> str:
        return f"selections/{self.variant}"

    @property
    def is_joint(self) -> bool:
        return self.name not in self.target_weights


def select_rows(session: Session) -> None:
    """Write `selections/T` and its baselines `selections/T@NAME` for each target T.

    With `joint`, T is one name for all targets together.
    """
    names = selection_names(session)
    tasks = [task for name in names for task in _tasks(session, name)]
    left = [task for task in tasks if _begin(session, task)]
    for center in (True, False):
        _walk_all(session, [task for task in left if task.graph.center == center])
    for name in names:
        if "random" in _baselines(session, name):
            _random(session, name, f"{name}@random")


def selection_names(session: Session) -> list[str]:
    """What is selected for: each target, or all together.

    Raises:
        SettingError: a target bears the name of the joint selection.
    """
    targets = session.targets()
    if not session.settings(JointSettings).joint:
        return targets
    if JOINT in targets:
        raise SettingError(f"a target is named {JOINT}, as is the selection of --joint; rename it")
    return [JOINT]


def _target_weights(session: Session, name: str) -> dict[str, float]:
    settings = session.settings(JointSettings, f"selections/{name}")
    if not session.settings(JointSettings).joint:
        return {name: 1.0}
    targets = session.targets()
    for unknown in settings.target_weight.keys() - set(targets):
        raise SettingError(
            f"target_weight {unknown} names no target; there are {', '.join(targets)}"
        )
    return {target: settings.target_weight.get(target, 1.0) for target in targets}


def _baselines(session: Session, name: str) -> tuple[str, ...]:
    return session.settings(ComparisonSettings, f"selections/{name}").baselines


def _tasks(session: Session, name: str) -> Iterator[_Task]:
    graph = graph_settings(session, name)
    settings = session.settings(WalkSettings, f"selections/{name}")
    weights = _target_weights(session, name)
    yield _Task(name=name, variant=name, target_weights=weights, graph=graph, walk=settings)
    for baseline in _baselines(session, name):
        if baseline in PRESETS:
            overlay = PRESETS[baseline]
            yield _Task(
                name=name,
                variant=f"{name}@{baseline}",
                target_weights=weights,
                graph=build(GraphSettings, as_dict(graph) | overlay),
                walk=build(WalkSettings, as_dict(settings) | overlay),
            )


def _begin(session: Session, task: _Task) -> bool:
    """Record what makes the selection; whether it is still to be made."""
    workspace = session.workspace
    graph_folder = graph_stage(task.graph.center)
    target_folders = [f"targets/{target}/gradients" for target in task.target_weights]
    workspace.require_current(graph_folder, "graph" if task.graph.center else "graph --no-center")
    workspace.require_current("gradients", "gradients")
    for folder in target_folders:
        workspace.require(folder, "gradients")
    comparison = session.settings(ComparisonSettings, f"selections/{task.name}")
    session.begin(
        task.stage,
        task.graph,
        task.walk,
        inputs=["gradients", graph_folder, *target_folders],
        facts={"target_weight": task.target_weights} if task.is_joint else {},
        remember=as_dict(comparison)
        | ({"target_weight": task.target_weights} if task.is_joint else {}),
        grown="redo",
    )
    if workspace.receipt(task.stage):
        log.info("%s: already done", task.stage)
        return False
    return True


def _walk_all(session: Session, tasks: Sequence[_Task]) -> None:
    """Make selections that read the pool's rows alike, after one pass over it for them all."""
    if not tasks:
        return
    workspace, began = session.workspace, time.monotonic()
    x = GradientSet(workspace, "gradients", center=tasks[0].graph.center)
    neighbors = map_neighbors(workspace, graph_stage(tasks[0].graph.center))
    knowledge = [_knowledge(workspace, task, x) for task in tasks]
    along, valid = align(x, [known.components for known in knowledge])
    log.info("walk: one pass over %d rows for %d selections", len(x), len(tasks))
    each_pass = (time.monotonic() - began) / len(tasks)
    for task, known, own in zip(tasks, knowledge, along, strict=True):
        began = time.monotonic()
        selection = carry_out(
            known,
            x,
            neighbors,
            own,
            valid,
            task.walk,
            label=task.stage,
            earlier=list(_finished(workspace, task.stage)),
            save=partial(_save, workspace, task.stage),
        )
        held = ExampleSet(workspace, "pool").take(selection.rows, ["id", "record"])
        lines = selection.lines([row["id"] for row in held])
        seconds = each_pass + time.monotonic() - began
        _commit(session, task.stage, lines, held, selection.summary(), seconds)


def _knowledge(workspace: Workspace, task: _Task, x: GradientSet) -> CoreKnowledge:
    each = {
        target: knowledge_of(
            GradientSet(workspace, f"targets/{target}/gradients").read_all(),
            len(x),
            x.dimensions,
            task.walk,
        )
        for target in task.target_weights
    }
    return joint_knowledge(each, task.target_weights) if task.is_joint else each[task.name]


def _finished(workspace: Workspace, stage: str) -> Iterator[list[Pick]]:
    """Picks of the first components, as far as an earlier run came."""
    for component in itertools.count():
        name = _piece(component)
        if workspace.receipt(stage, name) is None:
            return
        lines = workspace.read_bytes(f"{stage}/{name}.jsonl").splitlines()
        yield [Pick(**json.loads(line)) for line in lines]


def _save(workspace: Workspace, stage: str, component: int, picks: list[Pick]) -> None:
    name = _piece(component)
    files = {f"{name}.jsonl": pick_lines(picks)}
    workspace.commit(stage, name, files, {"picks": len(picks)})


def _piece(component: int) -> str:
    return f"component-{component:05d}"


def _random(session: Session, target: str, variant: str) -> None:
    """As many rows as the target's selection has, drawn at random."""
    workspace = session.workspace
    main = workspace.require(f"selections/{target}", "select")
    stage = f"selections/{variant}"
    _, _, seed = pool_settings(session)
    session.begin(stage, seed, inputs=["pool", f"selections/{target}"], grown="redo")
    if workspace.receipt(stage):
        log.info("%s: already done", stage)
        return
    began = time.monotonic()
    pool = ExampleSet(workspace, "pool")
    rng = np.random.default_rng([seed.seed, 1])  # not the warm-up's draw
    rows = rng.choice(pool.rows, size=main["selected"], replace=False).tolist()
    held = pool.take(rows, ["id", "record"])
    picks = [
        {"rank": rank, "row": row, "component": None, "step": "random", "similarity": None}
        | {"id": one["id"]}
        for rank, (row, one) in enumerate(zip(rows, held, strict=True))
    ]
    lines = "".join(json.dumps(pick) + "\n" for pick in picks).encode()
    summary = {"budget": len(rows), "selected": len(rows), "components": 0, "per_component": []}
    _commit(session, stage, lines, held, summary, time.monotonic() - began)


def _commit(
    session: Session,
    stage: str,
    lines: bytes,
    held: list[dict[str, Any]],
    summary: dict[str, Any],
    seconds: float,
) -> None:
    files = {
        "selection.jsonl": lines,
        "selected.jsonl": "".join(row["record"] + "\n" for row in held).encode(),
        "summary.json": (json.dumps(summary, indent=1) + "\n").encode(),
    }
    facts = {**summary, "seconds": round(seconds, 3)}
    session.workspace.commit(stage, STAGE_RECEIPT, files, facts)
    log.info("%s: %d of %d selected", stage, summary["selected"], summary["budget"])


def selected_rows(session: Session, variant: str) -> list[int]:
    """Pool rows of a finished selection, in the order of picking."""
    session.workspace.require_current(f"selections/{variant}", "select")
    lines = session.workspace.read_bytes(f"selections/{variant}/selection.jsonl").splitlines()
    return [json.loads(line)["row"] for line in lines]
