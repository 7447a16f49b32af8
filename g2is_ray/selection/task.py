"""A task: one selection to make, and everything that decides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from g2is_ray.config import BudgetSettings, GraphSettings, SeedSettings, as_dict
from g2is_ray.selector.interface import Reads, Selector
from g2is_ray.selector.methods import SelectorSettings, short_name
from g2is_ray.selector.registry import graph_read, is_built_in, reads_features, source_hash
from g2is_ray.workspace.layout import OVERLAP, POOL, graph_stage
from g2is_ray.workspace.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Task:
    """A selection to make, for one target or for several together."""

    name: str
    """Name of the target, or joint."""
    stage: str
    """Folder of the selection."""
    follows: str = ""
    """Selection whose size is this one's budget; empty if this one has the budget itself."""
    target_weights: dict[str, float]
    """Targets in order, each with its share of a joint budget."""
    selector: type[Selector]
    selector_settings: Any = None
    """What the selector is built with, of its `settings_class`; None if it has no such class."""
    chosen: SelectorSettings
    budget: BudgetSettings
    graph: GraphSettings
    seed: SeedSettings
    remember: Mapping[str, Any] = field(default_factory=dict)
    """Settings that later commands read from the workspace, besides those that decide."""

    @property
    def is_joint(self) -> bool:
        return self.name not in self.target_weights

    @property
    def reads(self) -> frozenset[Reads]:
        return self.selector.reads

    @property
    def reads_features(self) -> bool:
        return reads_features(self.reads)

    @property
    def reads_graph(self) -> bool:
        return "graph" in self.reads

    @property
    def source(self) -> GraphSettings:
        """The features, and the graph of them, that the selector is given if it reads them."""
        return graph_read(self.reads, self.graph)

    def build(self) -> Selector:
        """The selector, built with its settings."""
        if self.selector_settings is None:
            return self.selector()
        return self.selector(self.selector_settings)  # type: ignore[call-arg]

    def graph_input(self, workspace: Workspace) -> str:
        """The graph that decides the selection; empty if none does.

        A centered selection that an earlier version made has the graph among its inputs even if it
        read only the graph's mean. Its record says so, and that selection stays what it is.
        """
        stage = graph_stage(self.source.center, self.source.features)
        if self.reads_graph:
            return stage
        recorded = workspace.stages().get(self.stage, {}).get("inputs", {})
        as_before = stage in recorded and bool(workspace.storage.names(self.stage))
        return stage if as_before else ""

    def inputs(self, workspace: Workspace) -> list[str]:
        """Stages that decide the selection."""
        kind = self.source.features
        found: list[str] = []
        if graph := self.graph_input(workspace):
            found.append(graph)
        if self.reads_features:
            found += [kind, *(f"targets/{name}/{kind}" for name in self.target_weights)]
        if "texts" in self.reads or not self.reads_features:
            found.append(POOL)
        if not self.chosen.allow_overlap:
            found.append(OVERLAP)
        if "texts" in self.reads:
            found += [f"targets/{name}/val" for name in self.target_weights]
        return found

    def decides(self) -> dict[str, Any]:
        """Settings that decide the selection; its fingerprint is made from them and the inputs."""
        facts: dict[str, Any] = {"selector": short_name(self.chosen.selector)}
        if self.selector_settings is not None:
            facts |= as_dict(self.graph, self.selector_settings)
        else:
            if "gradients" in self.reads:
                facts["features"], facts["center"] = self.graph.features, self.graph.center
            if "texts" in self.reads or self.reads_features:
                facts["subtask_field"] = self.chosen.subtask_field
        if "seed" in self.reads:
            facts["seed"] = self.seed.seed
        if not is_built_in(self.selector):
            facts["source_sha256"] = source_hash(self.selector)
        facts["allow_overlap"] = self.chosen.allow_overlap
        if not self.follows:
            tokens, fraction = self.budget.budget_tokens, self.budget.fraction
            facts |= {"budget_tokens": tokens} if tokens else {"fraction": fraction}
        if self.is_joint:
            facts["target_weight"] = self.target_weights
        return facts
