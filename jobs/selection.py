"""Select rows of the pool for each target: the selection, and what it is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from g2is_ray.config import (
    BudgetSettings,
    Features,
    GraphSettings,
    JointSettings,
    SeedSettings,
    WalkSettings,
    as_dict,
)
from g2is_ray.errors import SettingError
from g2is_ray.selection import run
from g2is_ray.selection.source import Source
from g2is_ray.selection.task import Task
from g2is_ray.selector.interface import Selector
from g2is_ray.selector.methods import (
    BaselineSettings,
    Method,
    SelectorSettings,
    methods_of,
    parse_method,
)
from g2is_ray.selector.registry import NAMES, find, is_own
from g2is_ray.workspace.layout import JOINT
from jobs.graph import graph_settings
from jobs.session import Session


def select_rows(session: Session) -> list[str]:
    """Write `selections/T` and its baselines `selections/T@NAME` for each target T.

    With `joint`, T is one name for all targets together.

    Returns:
        Names of the selections.
    """
    tasks = all_tasks(session)
    make_selections(session, tasks)
    return [task.stage.removeprefix("selections/") for task in tasks]


def make_selections(session: Session, tasks: Sequence[Task]) -> None:
    """Write the selections of the tasks that are not done; those that others follow come first."""
    run.select(session.workspace, tasks, recompute=session.redo_command)


def check_budget(session: Session, name: str) -> None:
    """Refuse a budget or an overlap before the hours that gradients take."""
    stage, source = f"selections/{name}", Source(session.workspace)
    source.budget(session.settings(BudgetSettings, stage))
    source.allowed(session.settings(SelectorSettings, stage))


def selection_names(session: Session) -> list[str]:
    """Names of the selections: each target, or joint for all targets together.

    Raises:
        SettingError: a target has the name of the joint selection.
    """
    targets = session.targets()
    if not session.settings(JointSettings).joint:
        return targets
    if JOINT in targets:
        raise SettingError(f"a target is named {JOINT}, as is the selection of --joint; rename it")
    return [JOINT]


def all_tasks(session: Session) -> list[Task]:
    """The tasks of every selection and its baselines. Runs the code of a user's own selectors."""
    return [task for name in selection_names(session) for task in tasks_of(session, name)]


def tasks_of(session: Session, name: str) -> Iterator[Task]:
    """The selection of that name, and then its baselines.

    Runs the code of a user's own selectors.
    """
    main = f"selections/{name}"
    chosen = session.settings(SelectorSettings, main)
    baselines = session.settings(BaselineSettings, main).baselines
    own = Method(name="", selector=chosen.selector)
    yield task_of(session, name, own, stage=main)
    for method in methods_of("baselines", baselines):
        if method.selector == own.selector and not method.settings:
            continue  # it would be compared with itself
        task = task_of(session, name, method, stage=f"{main}@{method.name}")
        yield dataclasses.replace(task, follows=main) if task.selector.fills_budget else task


def task_of(session: Session, name: str, method: Method, *, stage: str) -> Task:
    """The task of a method, for a target or for all of them together."""
    main = f"selections/{name}"
    chosen = session.settings(SelectorSettings, main)
    chosen = method.applied(dataclasses.replace(chosen, selector=method.selector))
    budget = session.settings(BudgetSettings, main)
    graph = method.applied(graph_settings(session, name))
    walk = method.applied(session.settings(WalkSettings, main))
    comparison = session.settings(BaselineSettings, main)
    weights = _target_weights(session, name)
    joint = {"target_weight": weights} if name not in weights else {}
    selector = _find(session, method.selector)
    own = selector.settings_class
    return Task(
        name=name,
        stage=stage,
        target_weights=weights,
        selector=selector,
        selector_settings=method.applied(session.settings(own, main)) if own else None,
        chosen=chosen,
        budget=budget,
        graph=graph,
        seed=session.settings(SeedSettings),
        remember=as_dict(graph, walk, budget, chosen, comparison) | joint,
    )


def features_read(tasks: Iterable[Task]) -> set[Features]:
    """Kinds of features that some task reads."""
    return {task.source.features for task in tasks if task.reads_features}


def graphs_read(tasks: Iterable[Task]) -> list[GraphSettings]:
    """Graphs that some task reads, each once."""
    return list(dict.fromkeys(task.source for task in tasks if task.reads_graph))


def check_selectors(session: Session) -> None:
    """Refuse a user's selector that cannot be loaded before hours of work are done for it."""
    baselines = session.settings(BaselineSettings).baselines
    methods = methods_of("baselines", baselines)
    for name in (session.settings(SelectorSettings).selector, *(m.selector for m in methods)):
        if name not in NAMES:
            _find(session, name)


def _find(session: Session, selector: str | type[Selector]) -> type[Selector]:
    """The class of a selector; code that only the workspace names is not run."""
    if isinstance(selector, str) and is_own(selector):
        given = session.given
        asked = (given.get("selector", ""), *given.get("baselines", ()), *given.get("methods", ()))
        if selector not in {parse_method(one).selector for one in asked if one}:
            raise SettingError(
                f"the workspace names the selector {selector}, whose code is run only if you ask "
                "for it: name it with --selector or --baselines again"
            )
    return find(selector)


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
