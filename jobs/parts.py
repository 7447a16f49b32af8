"""Finishing what is left of one or more stages with a pool of workers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from actors.connection.cluster import share_of_cluster
from actors.pool.limits import PoolLimits
from actors.pool.metrics import pool_metrics
from actors.pool.pool import OnEvent, WorkerPool
from actors.pool.shared import SharedWorkspace
from jobs.events import EventLog
from jobs.session import Session

log = logging.getLogger(__name__)

Item = TypeVar("Item")

LIMITS = PoolLimits()
"""Limits of every pool of workers that a command starts."""


class StageWorkers:
    """The workers of a stage: one pool for all steps, started by the first step with work left.

    A context manager: the workers end with the block.
    """

    def __init__(
        self,
        session: Session,
        actor_class: type,
        order: Any,
        workers: int,
        *,
        tasks_per_worker: int = 1,
        affinity: Callable[[Any], Any] | None = None,
    ) -> None:
        """Describe the workers.

        Args:
            order: what the actors are built with.
            workers: how many; 0 takes one per GPU.
            tasks_per_worker, affinity: see `WorkerPool`.
        """
        self._session, self._actor_class, self._order = session, actor_class, order
        self._workers, self._tasks_per_worker = workers, tasks_per_worker
        self._affinity = affinity
        self._pool: WorkerPool | None = None
        self._at_end = contextlib.ExitStack()

    def __enter__(self) -> StageWorkers:
        return self

    def __exit__(self, *error: Any) -> None:
        self._at_end.__exit__(*error)

    def finish(
        self,
        items: Mapping[Item, tuple[str, str]],
        label: str,
        *,
        is_current: Callable[[Item, dict[str, Any]], bool] = lambda item, receipt: True,
    ) -> dict[Item, dict[str, Any]]:
        """Process the items without a receipt; returns the receipts of all items.

        Args:
            items: arguments of the actors' `process`, and the stage and name of their receipts.
            label: name of the step in log lines.
            is_current: whether a receipt belongs to the item as it is now.
        """
        workspace = self._session.workspace

        def written(item: Item) -> dict[str, Any] | None:
            stage, piece = items[item]
            receipt = workspace.stage(stage).verified(piece)
            return receipt if receipt is not None and is_current(item, receipt) else None

        found = {item: written(item) for item in items}
        receipts = {item: receipt for item, receipt in found.items() if receipt is not None}
        left = [item for item in items if item not in receipts]
        if left:
            log.info("%s: %d of %d pieces to do", label, len(left), len(items))
            pool = self._running_pool()
            self._session.worker_log.begin(label.partition(",")[0])
            receipts.update(pool.run(left, label, written))
        else:
            log.info("%s: already done", label)
        return receipts

    def _running_pool(self) -> WorkerPool:
        if self._pool is None:
            self._session.ray()
            share = share_of_cluster(self._session.execution, self._workers)
            pool = WorkerPool(
                self._actor_class,
                self._order,
                share,
                tasks_per_worker=self._tasks_per_worker,
                affinity=self._affinity,
                workspace=SharedWorkspace(self._session.workspace.storage.location("")),
                on_event=_observer(self._session.events),
                limits=LIMITS,
            )
            self._pool = self._at_end.enter_context(pool)
        return self._pool


def finish_parts(
    session: Session,
    items: Mapping[Item, tuple[str, str]],
    label: str,
    actor_class: type,
    order: Any,
    workers: int,
    *,
    tasks_per_worker: int = 1,
    is_current: Callable[[Item, dict[str, Any]], bool] = lambda item, receipt: True,
) -> dict[Item, dict[str, Any]]:
    """Finish a stage of one step; see `StageWorkers`."""
    with StageWorkers(
        session, actor_class, order, workers, tasks_per_worker=tasks_per_worker
    ) as stage_workers:
        return stage_workers.finish(items, label, is_current=is_current)


def _observer(events: EventLog) -> OnEvent:
    """Return a function that logs a pool's events and counts them in Ray's metrics."""
    metrics = pool_metrics()

    def on_event(name: str, facts: dict[str, Any]) -> None:
        events.tell(name, facts)
        metrics.on_event(name, facts)

    return on_event
