"""Select rows of the pool for each target: the selection, and what it is compared with."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2is_ray.config import GraphSettings, SelectorSettings, WalkSettings, as_dict
from g2is_ray.contamination.stage import rows_like_tests
from g2is_ray.data.examples import ExampleSet
from g2is_ray.errors import InputError
from g2is_ray.features.rows import MappedParts, map_neighbors, map_similarities
from g2is_ray.features.store import FeatureSet
from g2is_ray.selection.budget import Budget, row_budget, token_budget
from g2is_ray.selection.selection import Aim, carry_out, choose, knowledge_of, pick_lines, read_rows
from g2is_ray.selector.interface import Pool, Reads, Selector, Target
from g2is_ray.selector.knowledge import CoreKnowledge, joint_knowledge
from g2is_ray.selector.methods import ComparisonSettings
from g2is_ray.selector.registry import reads_features
from g2is_ray.selector.walk import Pick, align
from g2is_ray.workspace.layout import POOL, graph_stage
from g2is_ray.workspace.workspace import STAGE_RECEIPT, Workspace
from jobs.graph import graph_settings
from jobs.selection_tasks import Task, selection_names, tasks_of
from jobs.session import Session

log = logging.getLogger(__name__)

Directions = list[NDArray[np.floating]]
Picked = tuple[list[Pick], dict[str, Any]]  # and the summary


def select_rows(session: Session) -> list[str]:
    """Write `selections/T` and its baselines `selections/T@NAME` for each target T.

    With `joint`, T is one name for all targets together.

    Returns:
        Names of the selections.
    """
    tasks = [task for name in selection_names(session) for task in tasks_of(session, name)]
    make_selections(session, tasks)
    return [task.stage.removeprefix("selections/") for task in tasks]


def make_selections(session: Session, tasks: Sequence[Task]) -> None:
    """Write the stages of the tasks that are not done; those that others follow come first."""
    left = [task for task in tasks if _begin(session, task)]
    for graph in dict.fromkeys(task.source for task in left):
        own = [task for task in left if task.source == graph]
        _select_all(_Source(session.workspace, graph), own)


def check_budget(session: Session, name: str) -> None:
    """Refuse now what would be refused after the hours that gradients take."""
    stage = f"selections/{name}"
    walk, chosen = session.settings(WalkSettings, stage), session.settings(SelectorSettings, stage)
    source = _Source(session.workspace, graph_settings(session, name))
    source.budget(walk.fraction, chosen.budget_tokens)
    source.allowed(chosen)


def _begin(session: Session, task: Task) -> bool:
    """Record what makes the selection; whether it is still to be made."""
    workspace, inputs = session.workspace, task.inputs()
    for folder, command in inputs.items():
        workspace.require_current(folder, command)
    comparison = session.settings(ComparisonSettings, f"selections/{task.name}")
    weights = {"target_weight": task.target_weights} if task.is_joint else {}
    session.begin(
        task.stage,
        inputs=[*inputs, *([task.follows] if task.follows else [])],
        facts=task.decides(),
        remember=as_dict(task.graph, task.walk, task.chosen, comparison) | weights,
        grown="redo",
    )
    if workspace.receipt(task.stage):
        log.info("%s: already done", task.stage)
        return False
    return True


class _Source:
    """The pool as selections read it: each thing once, and only when it is asked for."""

    def __init__(self, workspace: Workspace, graph: GraphSettings) -> None:
        self.workspace, self._center, self.features = workspace, graph.center, graph.features
        self._graph = graph_stage(graph.center, graph.features)
        self.examples = ExampleSet(workspace, POOL)

    @cached_property
    def x(self) -> FeatureSet:
        return FeatureSet(self.workspace, self.features, center=self._center)

    @cached_property
    def neighbors(self) -> MappedParts:
        return map_neighbors(self.workspace, self._graph)

    @cached_property
    def similarities(self) -> MappedParts:
        return map_similarities(self.workspace, self._graph)

    @cached_property
    def supervised_tokens(self) -> NDArray[np.int64]:
        return self.examples.supervised_tokens()

    @cached_property
    def like_tests(self) -> NDArray[np.bool_]:
        """Which rows [n] are like test rows."""
        return rows_like_tests(self.workspace)

    def allowed(self, chosen: SelectorSettings) -> NDArray[np.bool_]:
        """Which rows [n] may be selected.

        Raises:
            InputError: there are none.
        """
        if chosen.allow_overlap:
            return np.ones(self.examples.rows, dtype=bool)
        if self.like_tests.all():
            raise InputError(
                f"all {len(self.like_tests)} rows of the pool are like test rows, so none may be "
                "selected: take other tests or another pool, or give --allow-overlap"
            )
        return ~self.like_tests

    def texts(self) -> Iterator[str]:
        return (_text(row["messages"]) for row in self.examples.read_all(["messages"]))

    def budget(self, fraction: float, tokens: int) -> Budget:
        if tokens:
            return token_budget(self.supervised_tokens, tokens)
        return row_budget(self.examples.rows, fraction)

    def budget_of(self, task: Task) -> Budget:
        tokens = task.chosen.budget_tokens
        if not task.follows:
            return self.budget(task.walk.fraction, tokens)
        main = self.workspace.require(task.follows, "select")
        if tokens:
            return Budget(amount=main["supervised_tokens"], tokens=self.supervised_tokens)
        return Budget(amount=main["selected"])


def _text(messages: Sequence[dict[str, str]]) -> str:
    return "\n".join(message["content"] or "" for message in messages)


def _select_all(source: _Source, tasks: Sequence[Task]) -> None:
    """Make selections that read the pool's rows alike, after one pass over it for them all."""
    began = time.monotonic()
    ways = [
        _ByWalk(source, task) if task.selector is None else _BySelector(source, task, task.selector)
        for task in tasks
    ]
    directions = [own for way in ways for own in way.directions]
    products, usable = align(source.x, directions) if directions else ([], None)
    if directions:
        served = sum(bool(way.directions) for way in ways)
        log.info("select: one pass over %d rows for %d selections", len(source.x), served)
    rest, each_pass = iter(products), (time.monotonic() - began) / len(tasks)
    for task, way in zip(tasks, ways, strict=True):
        began = time.monotonic()
        own = list(itertools.islice(rest, len(way.directions)))
        budget, free = source.budget_of(task), source.allowed(task.chosen)
        free &= usable if way.directions and usable is not None else source.supervised_tokens > 0
        if budget.tokens is None and budget.amount > free.sum():
            log.warning(
                "%s: %d rows may be selected, fewer than the budget of %d; %d are like test rows",
                *(task.stage, free.sum(), budget.amount, source.like_tests.sum()),
            )
        picks, summary = way.select(own, free, budget)
        summary |= {"unit": budget.unit} | _overlap(source, task, picks)
        _commit(source, task.stage, picks, summary, each_pass + time.monotonic() - began)


def _overlap(source: _Source, task: Task, picks: Sequence[Pick]) -> dict[str, int]:
    """How many rows of the pool, and of the selection, are like test rows."""
    selected = int(source.like_tests[[pick.row for pick in picks]].sum())
    if selected:
        log.warning("%s: %d of %d rows are like test rows", task.stage, selected, len(picks))
    return {"like_tests": int(source.like_tests.sum()), "selected_like_tests": selected}


class _ByWalk:
    """Selects by the walk; picks of a finished component are kept."""

    def __init__(self, source: _Source, task: Task) -> None:
        self._source, self._task = source, task
        each = {name: self._knowledge(name) for name in task.target_weights}
        weights = task.target_weights
        self._known = joint_knowledge(each, weights) if task.is_joint else each[task.name]
        self.directions: Directions = [self._known.directions]

    def _knowledge(self, target: str) -> CoreKnowledge:
        own = self._source.x.of_target(target)
        return knowledge_of(own, self._source.x.dimensions, self._task.walk)

    def select(
        self,
        products: list[NDArray[np.float32]],
        free: NDArray[np.bool_],
        budget: Budget,
    ) -> Picked:
        workspace, stage = self._source.workspace, self._task.stage
        selection = carry_out(
            self._known,
            self._source.x,
            self._source.neighbors,
            products[0],
            free,
            self._task.walk,
            budget,
            label=stage,
            earlier=list(_finished(workspace, stage)),
            save=partial(_save, workspace, stage),
        )
        return selection.picks, selection.summary()


class _BySelector:
    """Selects by any other selector, for one target after another in the order of their names."""

    def __init__(self, source: _Source, task: Task, selector: type[Selector]) -> None:
        self._source, self._task, self._selector = source, task, selector()
        self._targets = [
            _target(source, name, selector.reads, task.chosen.subtask_field)
            for name in task.target_weights
        ]
        self.directions: Directions = (
            [self._selector.directions(target) for target in self._targets]
            if reads_features(task.reads)
            else []
        )

    def select(
        self,
        products: list[NDArray[np.float32]],
        free: NDArray[np.bool_],
        budget: Budget,
    ) -> Picked:
        source, reads = self._source, self._selector.reads
        if not self.directions:
            products = [np.empty((0, len(free)), dtype=np.float32) for _ in self._targets]
        given: dict[str, Any] = {"free": free}
        if "texts" in reads:
            given["texts"] = source.texts
        if "graph" in reads:
            given["neighbors"] = source.neighbors
            given["similarities"] = source.similarities
        if "tokens" in reads:
            given["tokens"] = source.supervised_tokens
        if "seed" in reads:
            given["seed"] = self._task.seed.seed
        weights = self._task.target_weights.values()
        aims = [
            Aim(target=target, products=own, weight=weight)
            for target, own, weight in zip(self._targets, products, weights, strict=True)
        ]
        picks = choose(self._selector, Pool(**given), aims, budget)
        if budget.tokens is None and len(picks) < budget.amount:
            log.warning("%s: %d of %d picked", self._task.stage, len(picks), budget.amount)
        counts = {"budget": budget.amount, "selected": len(picks)}
        return picks, counts | {"components": 0, "per_component": []}


def _target(source: _Source, name: str, reads: Collection[Reads], field: str) -> Target:
    """What a selector that reads so much is given of a target; subtasks are in the field."""
    if not ("texts" in reads or reads_features(reads)):
        return Target(features=np.empty((0, 0), dtype=np.float32), texts=[], subtasks=[])
    examples = ExampleSet(source.workspace, f"targets/{name}/val")
    rows = list(examples.read_all(["messages", "record"]))
    features = np.empty((len(rows), 0), dtype=np.float32)
    if reads_features(reads):
        features = source.x.of_target(name)
        usable = np.flatnonzero(features.any(axis=1))
        if not len(usable):
            raise InputError(f"no row of the target {name} has usable {source.features}")
        features, rows = features[usable], [rows[place] for place in usable]
    return Target(
        features=features,
        texts=[_text(row["messages"]) for row in rows] if "texts" in reads else [],
        subtasks=[str(json.loads(row["record"]).get(field, "")) for row in rows],
    )


def _finished(workspace: Workspace, stage: str) -> Iterator[list[Pick]]:
    """Picks of the first components, as far as an earlier run came."""
    for component in itertools.count():
        name = _piece(component)
        if workspace.receipt(stage, name) is None:
            return
        lines = workspace.read_bytes(f"{stage}/{name}.jsonl").splitlines()
        with workspace.understanding(f"{stage}/{name}.jsonl"):
            picks = [Pick(**json.loads(line)) for line in lines]
        yield picks


def _save(workspace: Workspace, stage: str, component: int, picks: list[Pick]) -> None:
    name = _piece(component)
    files = {f"{name}.jsonl": pick_lines(picks)}
    workspace.commit(stage, name, files, {"picks": len(picks)})


def _piece(component: int) -> str:
    return f"component-{component:05d}"


def _commit(
    source: _Source, stage: str, picks: list[Pick], summary: dict[str, Any], seconds: float
) -> None:
    columns = ["id", "record", "supervised_tokens"]
    held = source.examples.take([pick.row for pick in picks], columns)
    summary |= {"supervised_tokens": sum(row["supervised_tokens"] for row in held)}
    files = {
        "selection.jsonl": pick_lines(picks, [row["id"] for row in held]),
        "selected.jsonl": "".join(row["record"] + "\n" for row in held).encode(),
        "summary.json": (json.dumps(summary, indent=1) + "\n").encode(),
    }
    facts = {**summary, "seconds": round(seconds, 3)}
    source.workspace.commit(stage, STAGE_RECEIPT, files, facts)
    log.info(
        "%s: %d rows with %d supervised tokens, of a budget of %d %s",
        stage,
        *(summary[key] for key in ("selected", "supervised_tokens", "budget", "unit")),
    )


def selected_rows(session: Session, variant: str) -> list[int]:
    """Pool rows of a finished selection, in the order of picking.

    Raises:
        WorkspaceError: the selection is not finished, older than the pool, or damaged.
    """
    stage = f"selections/{variant}"
    session.workspace.require_current(stage, "select")
    return read_rows(session.workspace, stage)
