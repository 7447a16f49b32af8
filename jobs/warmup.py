"""Warm up the adapter on a random share of the pool, or take checkpoints of another training."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np

from actors.connection.cluster import share_of_cluster
from actors.trainer import train
from g2is_ray.config import TrainingPlan, WarmupSettings, as_dict
from g2is_ray.errors import SettingError
from g2is_ray.models import checkpoints
from g2is_ray.training import trainer_folders
from g2is_ray.workspace.workspace import Growth
from jobs.ingest import pool_settings
from jobs.model import check_adapter, lora_settings
from jobs.session import Session

log = logging.getLogger(__name__)

_LARGEST_BATCH = 128  # LESS's


def warm_up(session: Session) -> None:
    """Write `warmup`: adapters and AdamW's moments."""
    settings = session.settings(WarmupSettings, "warmup")
    if settings.warmup_from:
        _take(session, settings)
    else:
        _train(session, settings)


def check_folders(session: Session) -> None:
    """Refuse now what the warm-up would refuse after the pool is read."""
    settings = session.settings(WarmupSettings, "warmup")
    count = len(settings.warmup_from)
    if count and settings.checkpoints != count and "checkpoints" in session.given:
        raise SettingError(
            f"checkpoints should be the number of folders in warmup_from, {count}, or left out, "
            f"got {settings.checkpoints}"
        )
    if "warmup_from" in session.given:
        trainer_folders.require_files([Path(folder) for folder in settings.warmup_from])


def _take(session: Session, settings: WarmupSettings) -> None:
    workspace = session.workspace
    workspace.require("pool", "ingest")
    check_folders(session)
    if "warmup_from" not in session.given and workspace.receipt("warmup"):
        return  # nothing was asked of the folders that it came from
    model, _, _ = pool_settings(session)
    lora = lora_settings(session, model, "warmup")
    folders = [Path(folder).resolve() for folder in settings.warmup_from]
    trainer_folders.require_files(folders)
    taken = dataclasses.replace(
        settings, checkpoints=len(folders), warmup_from=tuple(map(str, folders))
    )
    session.begin(
        "warmup",
        model,
        facts={"warmup_from": trainer_folders.digests(folders)},
        remember=as_dict(lora, taken),
    )
    if workspace.receipt("warmup"):
        log.info("warmup: already done")
        return
    trainer_folders.import_checkpoints(workspace, folders, model)
    log.info("warmup: took %s; lora_* settings are tuning's", ", ".join(f.name for f in folders))


def _train(session: Session, settings: WarmupSettings) -> None:
    workspace = session.workspace
    pool = workspace.require("pool", "ingest")
    model, read, seed = pool_settings(session)
    lora = lora_settings(session, model, "warmup")
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
    done = workspace.receipt("warmup") is not None
    # Rows added to the pool later are measured with the adapter that all others are.
    grown: Growth = "keep" if done else "redo"
    session.begin("warmup", model, lora, settings, seed, inputs=["pool"], grown=grown)
    if done:
        log.info("warmup: already done")
        return
    check_adapter(session, model, gradients=True)
    draw = np.random.default_rng(seed.seed).choice(pool["rows"], size=count, replace=False)
    log.info("warmup: %d rows, %d epochs", count, plan.epochs)
    session.ray()
    share = share_of_cluster(session.execution, session.execution.train_workers)
    receipt = train(workspace, "warmup", plan, draw.tolist(), session.execution, share)
    log.info("warmup: %d steps, loss %s", receipt["steps"], receipt["train_loss"])
