"""Running what is left of one or more stages on a pool of actors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from actors.connection.cluster import share_of_cluster
from actors.pool.metrics import pool_metrics
from actors.pool.pool import OnEvent, WorkerPool
from actors.pool.shared import SharedWorkspace
from jobs.events import EventLog
from jobs.session import Session

log = logging.getLogger(__name__)

Item = TypeVar("Item")


def finish_parts(
    session: Session,
    items: Mapping[Item, tuple[str, str]],
    label: str,
    actor_class: type,
    arguments: dict[str, Any],
    workers: int,
    *,
    gpus_help: bool = True,
    tasks_per_worker: int = 1,
    affinity: Callable[[Item], Any] | None = None,
    is_current: Callable[[Item, dict[str, Any]], bool] = lambda item, receipt: True,
) -> dict[Item, dict[str, Any]]:
    """Do what is not done, and return the receipts of all items.

    Args:
        items: what the actors' `process` is called with, and the stage and receipt it writes.
        label: heads the progress lines.
        workers: how many; 0 takes one per GPU.
        gpus_help: whether the work can use a GPU at all.
        tasks_per_worker, affinity: see `WorkerPool`.
        is_current: whether a receipt is of what the item is now.
    """

    def written(item: Item) -> dict[str, Any] | None:
        receipt = session.workspace.receipt(*items[item])
        return receipt if receipt is not None and is_current(item, receipt) else None

    found = {item: written(item) for item in items}
    receipts = {item: receipt for item, receipt in found.items() if receipt is not None}
    left = [item for item in items if item not in receipts]
    if left:
        log.info("%s: %d of %d pieces to do", label, len(left), len(items))
        session.ray()
        share = share_of_cluster(session.execution, workers, gpus_help=gpus_help)
        pool = WorkerPool(
            actor_class,
            arguments,
            share,
            tasks_per_worker=tasks_per_worker,
            affinity=affinity,
            workspace=SharedWorkspace(session.workspace.location("")),
            written=written,
            on_event=_observer(session.events),
        )
        receipts.update(pool.run(left, label))
    else:
        log.info("%s: already done", label)
    return receipts


def _observer(events: EventLog) -> OnEvent:
    """Has a pool's events logged, and counted in Ray's metrics."""
    metrics = pool_metrics()

    def on_event(name: str, facts: dict[str, Any]) -> None:
        events.tell(name, facts)
        metrics.on_event(name, facts)

    return on_event
