"""The actors of the worker pools: one thin class around each library object.

Each worker is built with one frozen dataclass, its order, and has `process(item) -> receipt`.
The library is imported with the first item, so that a worker imports only what it uses, and that
an error, such as a missing model, reaches the driver as that item's error.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from g2is_ray.config import (
    EvaluateSettings,
    ExecutionSettings,
    GradientSettings,
    GraphSettings,
    ModelSettings,
    SeedSettings,
    TrainingPlan,
)
from g2is_ray.workspace.workspace import Workspace

if TYPE_CHECKING:
    from g2is_ray.comparison.trials import Trial, TrialRunner
    from g2is_ray.features.writer import FeaturePart, FeatureWriter
    from g2is_ray.graph.builder import GraphBuilder
    from g2is_ray.graph.plan import GraphPlan, GraphTask
    from g2is_ray.training.evaluation import Evaluator, Measured

# ---- features ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EmbeddingOrder:
    """What embeddings of a workspace's rows are computed with."""

    url: str
    model: ModelSettings
    execution: ExecutionSettings
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class GradientOrder:
    """What gradients of a workspace's rows are computed with."""

    url: str
    model: ModelSettings
    gradients: GradientSettings
    seed: SeedSettings
    execution: ExecutionSettings
    max_tokens: int


class FeatureWorker(ABC):
    """Holds one model on its GPU and writes features; two threads may call `process` at once."""

    def __init__(self, order: Any) -> None:
        self._order = order
        self._loading = threading.Lock()

    @abstractmethod
    def _load(self) -> FeatureWriter:
        """Load the model."""

    @cached_property
    def _writer(self) -> FeatureWriter:
        return self._load()

    def process(self, part: FeaturePart) -> dict[str, Any]:
        """Write the features of one part; returns its receipt."""
        with self._loading:
            writer = self._writer
        return writer.write(part)


class EmbeddingWorker(FeatureWorker):
    """Writes embeddings; its order is an `EmbeddingOrder`."""

    def _load(self) -> FeatureWriter:
        from g2is_ray.features.embeddings import EmbeddingWriter

        order: EmbeddingOrder = self._order
        return EmbeddingWriter(
            Workspace(order.url),
            model=order.model,
            execution=order.execution,
            max_tokens=order.max_tokens,
        )


class GradientWorker(FeatureWorker):
    """Writes gradients; its order is a `GradientOrder`."""

    def _load(self) -> FeatureWriter:
        from g2is_ray.features.gradient_writer import GradientWriter

        order: GradientOrder = self._order
        return GradientWriter(
            Workspace(order.url),
            model=order.model,
            gradients=order.gradients,
            seed=order.seed,
            execution=order.execution,
            max_tokens=order.max_tokens,
        )


class ImportChecker:
    """Measures the loss of an imported adapter on the workspace's model."""

    def __init__(self, order: EmbeddingOrder) -> None:
        self._order = order

    def process(self, name: str) -> dict[str, Any]:
        """Write the receipt of that name; returns it."""
        from g2is_ray.training import imported

        order = self._order
        return imported.measure(
            Workspace(order.url), order.model, order.execution, order.max_tokens
        )


# ---- graph -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GraphOrder:
    """The stage of a graph, and the settings that it is built with."""

    url: str
    stage: str
    settings: GraphSettings


class GraphWorker:
    """Holds a group of the pool's features, on its GPU if it has one, and finds neighbors."""

    def __init__(self, order: GraphOrder) -> None:
        self._order = order
        self._built: tuple[GraphPlan, GraphBuilder] | None = None

    def process(self, task: GraphTask) -> dict[str, Any]:
        """Compute one piece of the graph; returns its receipt."""
        return self._builder().do(task)

    def _builder(self) -> GraphBuilder:
        """Return the builder of the plan in force, which may change between two steps."""
        from g2is_ray.graph.builder import GraphBuilder
        from g2is_ray.graph.plan import read_plan

        workspace, order = Workspace(self._order.url), self._order
        plan = read_plan(workspace, order.stage)
        assert plan is not None
        if self._built is None or self._built[0] != plan:
            self._built = None  # frees memory before the next builder takes some
            self._built = plan, GraphBuilder(workspace, order.stage, order.settings)
        return self._built[1]


# ---- trainings and evaluations -----------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrialOrder:
    """What all trials of a comparison have in common; see `TrialRunner`."""

    url: str
    model: ModelSettings
    plan: TrainingPlan
    evaluate: Mapping[str, EvaluateSettings]
    execution: ExecutionSettings


class TrialWorker:
    """Tunes and measures one trial after another on its GPU."""

    def __init__(self, order: TrialOrder) -> None:
        self._order = order

    @cached_property
    def _runner(self) -> TrialRunner:
        from g2is_ray.comparison.trials import TrialRunner

        order = self._order
        return TrialRunner(
            Workspace(order.url),
            model=order.model,
            plan=order.plan,
            evaluate=order.evaluate,
            execution=order.execution,
        )

    def process(self, trial: Trial) -> dict[str, Any]:
        """Run one trial; returns its receipt."""
        return self._runner.run(trial)


@dataclass(frozen=True, kw_only=True)
class EvaluationOrder:
    """What models are measured with on a target's test rows; see `Evaluator`."""

    url: str
    target: str
    model: ModelSettings
    evaluate: EvaluateSettings
    execution: ExecutionSettings
    max_tokens: int


class EvaluationWorker:
    """Measures one model after another on a target's test rows."""

    def __init__(self, order: EvaluationOrder) -> None:
        self._order = order

    @cached_property
    def _evaluator(self) -> Evaluator:
        from g2is_ray.training.evaluation import Evaluator

        order = self._order
        return Evaluator(
            Workspace(order.url),
            order.target,
            order.model,
            order.evaluate,
            order.execution,
            order.max_tokens,
        )

    def process(self, item: Measured) -> dict[str, Any]:
        """Measure one model; returns its receipt, which holds the scores."""
        return self._evaluator.measure(item)
