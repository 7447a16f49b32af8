"""Warm up the adapter on a random share of the pool."""

from __future__ import annotations

import logging

import numpy as np

from actors.cluster import share_of_cluster
from actors.trainer import train
from g2is_ray import checkpoints
from g2is_ray.config import LoraSettings, TrainingPlan, WarmupSettings
from jobs.ingest import pool_settings
from jobs.session import Session

log = logging.getLogger(__name__)

_LARGEST_BATCH = 128  # LESS's


def warm_up(session: Session) -> None:
    """Write `warmup`: adapters and AdamW's moments."""
    workspace = session.workspace
    pool = workspace.require("pool", "ingest")
    model, read, seed = pool_settings(session)
    lora = session.settings(LoraSettings, "warmup")
    settings = session.settings(WarmupSettings, "warmup")
    count = max(1, int(pool["rows"] * settings.warmup_fraction))
    plan = TrainingPlan(
        model=model,
        lora=lora,
        epochs=settings.warmup_epochs,
        learning_rate=settings.warmup_learning_rate,
        batch_size=settings.warmup_batch_size or max(1, min(_LARGEST_BATCH, count // 10)),
        schedule="linear",
        max_tokens=read.max_tokens,
        seed=seed.seed,
        checkpoints=settings.checkpoints,
    )
    checkpoints.ends(plan.steps(count), plan.checkpoints)  # refuses more than there are steps
    session.begin("warmup", model, lora, settings, seed, inputs=["pool"])
    if workspace.receipt("warmup"):
        log.info("warmup: already done")
        return
    draw = np.random.default_rng(seed.seed).choice(pool["rows"], size=count, replace=False)
    log.info("warmup: %d rows, %d epochs", count, plan.epochs)
    session.ray()
    share = share_of_cluster(session.execution, session.execution.train_workers)
    receipt = train(workspace, "warmup", plan, draw.tolist(), session.execution, share)
    log.info("warmup: %d steps, loss %s", receipt["steps"], receipt["train_loss"])
