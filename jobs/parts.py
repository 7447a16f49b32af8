"""Running a stage part by part on a pool of actors."""

from __future__ import annotations

import logging
from typing import Any

from actors.cluster import share_of_cluster
from actors.pool import WorkerPool
from g2is_ray.workspace import STAGE_RECEIPT, part_name
from jobs.session import Session

log = logging.getLogger(__name__)


def finish_parts(
    session: Session,
    stage: str,
    parts: int,
    actor_class: type,
    arguments: dict[str, Any],
    workers: int,
) -> list[dict[str, Any]]:
    """Do the parts of `stage` that are not done; returns the receipts of all, in order."""
    workspace = session.workspace
    held = {part: workspace.receipt(stage, part_name(part)) for part in range(parts)}
    receipts = {part: receipt for part, receipt in held.items() if receipt is not None}
    left = [part for part in range(parts) if part not in receipts]
    if left:
        log.info("%s: %d of %d parts to do", stage, len(left), parts)
        session.ray()
        share = share_of_cluster(session.execution, workers)
        receipts.update(WorkerPool(actor_class, arguments, share).run(left, stage))
    else:
        log.info("%s: already done", stage)
    return [receipts[part] for part in range(parts)]


def record_stage(session: Session, stage: str, facts: dict[str, Any]) -> None:
    """Write the receipt that says that the whole stage is done."""
    session.workspace.commit(stage, STAGE_RECEIPT, {}, facts)
