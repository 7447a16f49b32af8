"""Running what is left of one or more stages on a pool of actors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from actors.cluster import share_of_cluster
from actors.pool import WorkerPool
from g2is_ray.workspace import part_name
from jobs.session import Session

log = logging.getLogger(__name__)

Item = TypeVar("Item")


def finish_parts(
    session: Session,
    items: Mapping[Item, tuple[str, int]],
    label: str,
    actor_class: type,
    arguments: dict[str, Any],
    workers: int,
    *,
    gpus_help: bool = True,
    tasks_per_worker: int = 1,
) -> dict[Item, dict[str, Any]]:
    """Do what is not done, and return the receipts of all items.

    Args:
        items: what the actors' `process` is called with, and the stage and part it writes.
        label: heads the progress lines.
        workers: how many; 0 takes one per GPU.
        gpus_help: whether the work can use a GPU at all.
        tasks_per_worker: see `WorkerPool`.
    """
    workspace = session.workspace
    receipts = {}
    for item, (stage, part) in items.items():
        receipt = workspace.receipt(stage, part_name(part))
        if receipt is not None:
            receipts[item] = receipt
    left = [item for item in items if item not in receipts]
    if left:
        log.info("%s: %d of %d parts to do", label, len(left), len(items))
        session.ray()
        share = share_of_cluster(session.execution, workers, gpus_help=gpus_help)
        pool = WorkerPool(actor_class, arguments, share, tasks_per_worker=tasks_per_worker)
        receipts.update(pool.run(left, label))
    else:
        log.info("%s: already done", label)
    return receipts
