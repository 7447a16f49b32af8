"""Select: a workspace and tasks in, picks on disk out."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2is_ray.selection import files
from g2is_ray.selection.scan import scan
from g2is_ray.selection.source import RowsRead, Source
from g2is_ray.selection.task import Task
from g2is_ray.selector.budget import Budget
from g2is_ray.selector.picks import Pieces, Selection
from g2is_ray.workspace.workspace import Workspace

log = logging.getLogger(__name__)


def select(
    workspace: Workspace,
    tasks: Sequence[Task],
    recompute: Callable[[Sequence[str]], str] | None = None,
) -> None:
    """Write the selections of the tasks that are not done; a task that others follow comes first.

    Args:
        recompute: gives the command that recomputes stages, for error messages.

    Raises:
        WorkspaceError: a stage that a task reads is not there, or other settings made a selection.
        InputError: nothing can be selected.
    """
    left = [task for task in tasks if _begin(workspace, task, recompute)]
    if not left:
        return
    source = Source(workspace)
    read = {task.stage: source.rows_read(task) for task in left}
    waiting = [t for t in left if t.follows in read and read[t.follows] != read[t.stage]]
    for tasks in ([task for task in left if task not in waiting], waiting):
        for rows in dict.fromkeys(read[task.stage] for task in tasks):
            _select_all(source, rows, [task for task in tasks if read[task.stage] == rows])


def _begin(
    workspace: Workspace, task: Task, recompute: Callable[[Sequence[str]], str] | None
) -> bool:
    """Record what decides the selection; return whether it is still to be made."""
    inputs = task.inputs(workspace)
    for stage in inputs:
        workspace.stage(stage).require_current()
    workspace.stage(task.stage).begin(
        task.decides(),
        [*inputs, *([task.follows] if task.follows else [])],
        arguments=task.remember,
        grown="redo",
        recompute=recompute,
    )
    if workspace.stage(task.stage).verified():
        log.info("%s: already done", task.stage)
        return False
    return True


def _select_all(source: Source, rows: RowsRead | None, tasks: Sequence[Task]) -> None:
    """Make selections that read the pool's rows in the same way, after one pass for all of them."""
    began = time.monotonic()
    selectors = [task.build() for task in tasks]
    targets = [source.targets(task) for task in tasks]
    products: list[NDArray[np.float32]] = []
    usable = source.supervised_tokens > 0
    if rows is None:
        empty = np.empty((0, len(usable)), dtype=np.float32)
        products = [empty for each in targets for _ in each]
    else:
        directions = [
            selector.directions(target)
            for selector, own in zip(selectors, targets, strict=True)
            for target in own
        ]
        features = source.rows(rows)
        products, usable = scan(features, directions)
        log.info("select: one pass over %d rows for %d selections", len(features), len(selectors))
    rest, each_pass = iter(products), (time.monotonic() - began) / len(tasks)
    for task, selector, own_targets in zip(tasks, selectors, targets, strict=True):
        began = time.monotonic()
        budget, free = source.budget_of(task), source.allowed(task.chosen) & usable
        _warn_of_few(source, task, budget, free)
        selection = selector.select(
            source.pool(task, free),
            own_targets,
            list(itertools.islice(rest, len(own_targets))),
            budget,
            Pieces(
                label=task.stage,
                earlier=files.finished_pieces(source.workspace, task.stage),
                save=partial(files.save_piece, source.workspace, task.stage),
            ),
        )
        _write(source, task, selection, budget, each_pass + time.monotonic() - began)


def _warn_of_few(source: Source, task: Task, budget: Budget, free: NDArray[np.bool_]) -> None:
    if budget.tokens is None and budget.amount > free.sum():
        log.warning(
            "%s: %d rows may be selected, fewer than the budget of %d; %d are like test rows",
            *(task.stage, free.sum(), budget.amount, source.like_tests.sum()),
        )


def _write(
    source: Source, task: Task, selection: Selection, budget: Budget, seconds: float
) -> None:
    picks, stage = selection.picks, task.stage
    if budget.tokens is None and len(picks) < budget.amount:
        why = f": {selection.why_short}" if selection.why_short else ""
        log.warning("%s: %d of %d picked%s", stage, len(picks), budget.amount, why)
    held = source.examples.take(selection.rows, ["id", "record", "supervised_tokens"])
    alike = int(source.like_tests[selection.rows].sum())
    if alike:
        log.warning("%s: %d of %d rows are like test rows", stage, alike, len(picks))
    summary: dict[str, Any] = {
        "budget": budget.amount,
        "selected": len(picks),
        **selection.details,
        "unit": budget.unit,
        "like_tests": int(source.like_tests.sum()),
        "selected_like_tests": alike,
        "supervised_tokens": sum(row["supervised_tokens"] for row in held),
    }
    files.write_selection(source.workspace, stage, picks, held, summary, seconds)
    log.info(
        "%s: %d rows with %d supervised tokens, of a budget of %d %s",
        stage,
        *(summary[key] for key in ("selected", "supervised_tokens", "budget", "unit")),
    )
