"""What is to be selected: each target's selection and its baselines, and what decides them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from g2is_ray.config import (
    WALK,
    Features,
    GraphSettings,
    JointSettings,
    SeedSettings,
    SelectorSettings,
    WalkSettings,
    as_dict,
    is_own,
)
from g2is_ray.errors import SettingError
from g2is_ray.selector.interface import Reads, Selector
from g2is_ray.selector.methods import (
    ComparisonSettings,
    Method,
    methods_of,
    parse_method,
    short_name,
)
from g2is_ray.selector.registry import (
    find,
    graph_read,
    reads_features,
    reads_of,
    source_hash,
)
from g2is_ray.workspace.layout import JOINT, OVERLAP, POOL, graph_stage
from g2is_ray.workspace.workspace import Workspace
from jobs.graph import graph_settings
from jobs.session import Session


@dataclass(frozen=True, kw_only=True)
class Task:
    """A selection to be made, for one target or for several together."""

    name: str  # the target, or joint
    stage: str  # the selection
    follows: str = ""  # the selection that this one spends as much as, if any
    target_weights: dict[str, float]
    selector: type[Selector] | None  # None is the walk
    chosen: SelectorSettings
    graph: GraphSettings
    walk: WalkSettings
    seed: SeedSettings

    @property
    def is_joint(self) -> bool:
        return self.name not in self.target_weights

    @property
    def reads(self) -> frozenset[Reads]:
        return reads_of(WALK) if self.selector is None else self.selector.reads

    @property
    def source(self) -> GraphSettings:
        """Features, and the graph of them, that are read if any are."""
        return graph_read(self.reads, self.graph)

    @property
    def reads_graph(self) -> bool:
        return "graph" in self.reads

    def graph_input(self, workspace: Workspace) -> str:
        """The graph that decides the selection; empty if none does.

        A centered selection that an earlier version made has the graph among its inputs even
        if it read only the graph's mean. The record says so, and that selection stays what it is.
        """
        stage = graph_stage(self.source.center, self.source.features)
        recorded = workspace.stages().get(self.stage, {}).get("inputs", {})
        as_before = stage in recorded and bool(workspace.names(self.stage))
        return stage if self.reads_graph or as_before else ""

    def inputs(self, workspace: Workspace) -> dict[str, str]:
        """Stages that decide the selection, each with the command that makes it."""
        reads, kind = self.reads, self.source.features
        found: dict[str, str] = {}
        if graph := self.graph_input(workspace):
            command = "graph" if kind == "gradients" else f"graph --features {kind}"
            command += "" if self.source.center else " --no-center"
            found[graph] = command
        if reads_features(reads):
            found[kind] = kind
            found |= {f"targets/{name}/{kind}": kind for name in self.target_weights}
        if "texts" in reads or not reads_features(reads):
            found[POOL] = "ingest"
        if not self.chosen.allow_overlap:
            found[OVERLAP] = "ingest"
        if "texts" in reads:
            found |= {f"targets/{name}/val": "ingest" for name in self.target_weights}
        return found

    def decides(self) -> dict[str, Any]:
        """Settings that decide the selection."""
        tokens = self.chosen.budget_tokens
        amount = {"budget_tokens": tokens} if tokens else {"fraction": self.walk.fraction}
        if self.selector is None:
            facts = {"selector": WALK} | as_dict(self.graph, self.walk)
            del facts["fraction"]
        else:
            facts = self._decides_selector(self.selector)
        facts["allow_overlap"] = self.chosen.allow_overlap
        if not self.follows:
            facts |= amount
        if self.is_joint:
            facts["target_weight"] = self.target_weights
        return facts

    def _decides_selector(self, selector: type[Selector]) -> dict[str, Any]:
        facts: dict[str, Any] = {"selector": short_name(self.chosen.selector)}
        if "gradients" in selector.reads:
            facts["features"], facts["center"] = self.graph.features, self.graph.center
        if "texts" in selector.reads or reads_features(selector.reads):
            facts["subtask_field"] = self.chosen.subtask_field
        if "seed" in selector.reads:
            facts["seed"] = self.seed.seed
        if selector.__module__.partition(".")[0] != "g2is_ray":
            facts["source_sha256"] = source_hash(selector)
        return facts


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


def tasks_of(session: Session, name: str) -> Iterator[Task]:
    """The selection of that name, and then what it is compared with.

    Runs the code of a user's own selectors.
    """
    main = f"selections/{name}"
    chosen = session.settings(SelectorSettings, main)
    baselines = session.settings(ComparisonSettings, main).baselines
    own = Method(name="", selector=chosen.selector)
    yield task_of(session, name, own, stage=main)
    for method in methods_of("baselines", baselines):
        if method.selector == own.selector and not method.settings:
            continue  # it would be compared with itself
        follows = "" if method.selector == WALK else main  # a walk may end before its budget
        yield task_of(session, name, method, stage=f"{main}@{method.name}", follows=follows)


def all_tasks(session: Session) -> list[Task]:
    """The tasks of every selection and its baselines. Runs the code of a user's own selectors."""
    return [task for name in selection_names(session) for task in tasks_of(session, name)]


def features_read(tasks: Iterable[Task]) -> set[Features]:
    """Kinds of features that some task reads."""
    return {task.source.features for task in tasks if reads_features(task.reads)}


def graphs_read(tasks: Iterable[Task]) -> list[GraphSettings]:
    """Graphs that some task reads, each once."""
    return list(dict.fromkeys(task.source for task in tasks if task.reads_graph))


def task_of(session: Session, name: str, method: Method, *, stage: str, follows: str = "") -> Task:
    """What a method is to select for a target, or for all together, as the stage."""
    main = f"selections/{name}"
    chosen = session.settings(SelectorSettings, main)
    return Task(
        name=name,
        stage=stage,
        follows=follows,
        target_weights=_target_weights(session, name),
        selector=None if method.selector == WALK else _find(session, method.selector),
        chosen=method.applied(dataclasses.replace(chosen, selector=method.selector)),
        graph=method.applied(graph_settings(session, name)),
        walk=method.applied(session.settings(WalkSettings, main)),
        seed=session.settings(SeedSettings, POOL),
    )


def check_selectors(session: Session) -> None:
    """Refuse a user's selector that cannot be loaded before hours of work are done for it."""
    baselines = session.settings(ComparisonSettings).baselines
    methods = methods_of("baselines", baselines)
    for name in (session.settings(SelectorSettings).selector, *(m.selector for m in methods)):
        if is_own(name):
            _find(session, name)


def _find(session: Session, name: str) -> type[Selector]:
    given = session.given
    texts = (given.get("selector", WALK), *given.get("baselines", ()), *given.get("methods", ()))
    if is_own(name) and name not in {parse_method(text).selector for text in texts}:
        raise SettingError(
            f"the workspace names the selector {name}, whose code is run only if you ask for it: "
            "name it with --selector or --baselines again"
        )
    return find(name)


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
