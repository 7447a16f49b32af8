"""One training on the cluster, for the stages that train an adapter."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from actors.connection.cluster import share_of_cluster
from actors.trainer import train
from g2is_ray.config import TrainingPlan
from jobs.session import Session

log = logging.getLogger(__name__)


def train_stage(session: Session, stage: str, plan: TrainingPlan, rows: Sequence[int]) -> None:
    """Train an adapter on pool rows, write it as `stage`, and log one line.

    Raises:
        G2isError: see `actors.trainer.train`.
    """
    session.ray()
    session.worker_log.begin(stage)
    share = share_of_cluster(session.execution, session.execution.train_workers)
    receipt = train(session.workspace, stage, plan, rows, session.execution, share)
    log.info(
        "%s: %d rows, %d steps, loss %s, %.0f s",
        stage,
        *(receipt[key] for key in ("rows", "steps", "train_loss", "seconds")),
    )
