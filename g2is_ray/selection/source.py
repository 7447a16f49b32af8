"""What selections read of a workspace: pool, targets, features and graphs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from g2is_ray.config import BudgetSettings, Features
from g2is_ray.contamination.stage import rows_like_tests
from g2is_ray.data.examples import ExampleSet
from g2is_ray.errors import InputError
from g2is_ray.features.rows import MappedParts, map_neighbors, map_similarities
from g2is_ray.features.store import FeatureSet
from g2is_ray.selection.budget import row_budget, token_budget
from g2is_ray.selection.task import Task
from g2is_ray.selector.budget import Budget
from g2is_ray.selector.interface import Pool, Target
from g2is_ray.selector.methods import SelectorSettings
from g2is_ray.workspace.layout import POOL, graph_stage
from g2is_ray.workspace.workspace import Workspace


class RowsRead(NamedTuple):
    """How the pool's rows are formed; selections that agree in it share one pass over the pool."""

    features: Features
    center: bool
    of_graph: bool = False
    """Subtract the graph's mean, which is no longer the pool's since the pool has grown."""


class Source:
    """Reads each thing once, and only when a selection asks for it."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.examples = ExampleSet(workspace, POOL)
        self.rows = cache(self._rows)
        self._is_of_graph = cache(self._graph_has_another_mean)
        self._neighbors = cache(self._map_neighbors)
        self._similarities = cache(self._map_similarities)

    def rows_read(self, task: Task) -> RowsRead | None:
        """How the rows that a task reads are formed; None if it reads no features."""
        kind, center = task.source.features, task.source.center
        if not task.reads_features:
            return None
        if not (center and task.graph_input(self.workspace)):
            return RowsRead(kind, center)
        return RowsRead(kind, center, of_graph=self._is_of_graph(kind))

    def _graph_has_another_mean(self, kind: Features) -> bool:
        """Whether there is a centered graph whose mean is no longer the pool's."""
        features = self.rows(RowsRead(kind, center=True))
        assert features.mean is not None
        kept = features.graph_mean()
        return kept is not None and not np.array_equal(kept, features.mean)

    def _rows(self, read: RowsRead) -> FeatureSet:
        return FeatureSet(self.workspace, read.features, center=read.center, of_graph=read.of_graph)

    def _map_neighbors(self, stage: str) -> MappedParts:
        return map_neighbors(self.workspace, stage)

    def _map_similarities(self, stage: str) -> MappedParts:
        return map_similarities(self.workspace, stage)

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
            InputError: no row may be selected.
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
        """Text of each row of the pool, in order."""
        return (_text(row["messages"]) for row in self.examples.read_all(["messages"]))

    def budget(self, settings: BudgetSettings) -> Budget:
        """The budget that the settings give.

        Raises:
            SettingError: the budget is too small for a row.
        """
        if settings.budget_tokens:
            return token_budget(self.supervised_tokens, settings.budget_tokens)
        return row_budget(self.examples.rows, settings.fraction)

    def budget_of(self, task: Task) -> Budget:
        """The budget of a task: its settings', or the size of the selection that it follows."""
        if not task.follows:
            return self.budget(task.budget)
        main = self.workspace.stage(task.follows).require()
        if task.budget.budget_tokens:
            return Budget(amount=main["supervised_tokens"], tokens=self.supervised_tokens)
        return Budget(amount=main["selected"])

    def pool(self, task: Task, free: NDArray[np.bool_]) -> Pool:
        """The pool as the task's selector is given it; rows [n] that are `free` may be picked."""
        reads, read = task.reads, self.rows_read(task)
        graph = graph_stage(task.source.center, task.source.features)
        empty = Pool(free=free)
        return Pool(
            free=free,
            features=self.rows(read) if read else None,
            texts=self.texts if "texts" in reads else empty.texts,
            neighbors=self._neighbors(graph) if "graph" in reads else empty.neighbors,
            similarities=self._similarities(graph) if "graph" in reads else empty.similarities,
            tokens=self.supervised_tokens if "tokens" in reads else empty.tokens,
            seed=task.seed.seed if "seed" in reads else empty.seed,
        )

    def targets(self, task: Task) -> list[Target]:
        """The targets of a task, with the fields that its selector reads.

        Raises:
            InputError: no row of a target has usable features.
        """
        return [self._target(task, name, weight) for name, weight in task.target_weights.items()]

    def _target(self, task: Task, name: str, weight: float) -> Target:
        features, reads_texts = np.empty((0, 0), dtype=np.float32), "texts" in task.reads
        if not (reads_texts or task.reads_features):
            return Target(features=features, texts=[], subtasks=[], name=name, weight=weight)
        examples = ExampleSet(self.workspace, f"targets/{name}/val")
        rows = list(examples.read_all(["messages", "record"]))
        if read := self.rows_read(task):
            features = self.rows(read).of_target(name)
            usable = np.flatnonzero(features.any(axis=1))
            if not len(usable):
                raise InputError(f"no row of the target {name} has usable {read.features}")
            features, rows = features[usable], [rows[place] for place in usable]
        field = task.chosen.subtask_field
        return Target(
            features=features,
            texts=[_text(row["messages"]) for row in rows] if reads_texts else [],
            subtasks=[str(json.loads(row["record"]).get(field, "")) for row in rows],
            name=name,
            weight=weight,
        )


def _text(messages: Sequence[dict[str, str]]) -> str:
    return "\n".join(message["content"] or "" for message in messages)
