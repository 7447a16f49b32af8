"""Warm up the adapter on a random share of the pool, or import checkpoints of another training."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np

from g2is_ray.config import WarmupSettings, as_dict
from g2is_ray.errors import SettingError
from g2is_ray.models import checkpoints
from g2is_ray.training import trainer_folders
from g2is_ray.training.plans import warmup_plan
from g2is_ray.workspace.workspace import Growth
from jobs.ingest import pool_settings
from jobs.model import check_adapter, lora_settings
from jobs.session import Session
from jobs.training import train_stage

log = logging.getLogger(__name__)


def warm_up(session: Session) -> None:
    """Write `warmup`: adapters and AdamW's moments."""
    settings = session.settings(WarmupSettings)
    if settings.warmup_from:
        _take(session, settings)
    else:
        _train(session, settings)


def check_folders(session: Session) -> None:
    """Refuse settings of the warm-up before the pool is read."""
    settings = session.settings(WarmupSettings)
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
    workspace.stage("pool").require()
    check_folders(session)
    if "warmup_from" not in session.given and workspace.stage("warmup").verified():
        return  # the command does not name the folders, so they are not read again
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
    if workspace.stage("warmup").verified():
        log.info("warmup: already done")
        return
    trainer_folders.import_checkpoints(workspace, folders, model)
    log.info(
        "warmup: imported %s; lora_* settings apply to tuning only",
        ", ".join(f.name for f in folders),
    )


def _train(session: Session, settings: WarmupSettings) -> None:
    workspace = session.workspace
    pool = workspace.stage("pool").require()
    model, read, seed = pool_settings(session)
    lora = lora_settings(session, model, "warmup")
    count = max(1, int(pool["rows"] * settings.warmup_fraction))
    plan = warmup_plan(
        model, lora, settings, rows=count, max_tokens=read.max_tokens, seed=seed.seed
    )
    checkpoints.ends(plan.steps(count), plan.checkpoints)  # raises if there are too few steps
    done = workspace.stage("warmup").verified() is not None
    # Rows added to the pool later get gradients of the same adapter as the first ones.
    grown: Growth = "keep" if done else "redo"
    session.begin("warmup", model, lora, settings, seed, inputs=["pool"], grown=grown)
    if done:
        log.info("warmup: already done")
        return
    check_adapter(session, model, gradients=True)
    draw = np.random.default_rng(seed.seed).choice(pool["rows"], size=count, replace=False)
    train_stage(session, "warmup", plan, draw.tolist())
