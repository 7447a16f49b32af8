"""Tune an adapter on each selection."""

from __future__ import annotations

import logging

from actors.connection.cluster import share_of_cluster
from actors.trainer import train
from g2is_ray.config import LoraSettings, ModelSettings, TrainingPlan, TuneSettings
from g2is_ray.errors import SettingError
from g2is_ray.selection.files import selected_rows
from g2is_ray.workspace.layout import variants_in
from jobs.ingest import pool_settings
from jobs.model import lora_settings
from jobs.session import Session

log = logging.getLogger(__name__)


def tune(session: Session) -> None:
    """Write `tuned/T` for each selection of each target."""
    chosen: dict[str, None] = {}  # each once: targets share a joint selection
    for target in session.targets():
        variants = variants_in(session.workspace, target)
        if not variants:
            session.workspace.require(f"selections/{target}", "select")
        chosen |= dict.fromkeys(variants)
    for variant in chosen:
        _tune(session, variant)


def tuning_plan(
    model: ModelSettings, lora: LoraSettings, settings: TuneSettings, *, max_tokens: int, seed: int
) -> TrainingPlan:
    """How an adapter is tuned on any selection."""
    return TrainingPlan(
        model=model,
        lora=lora,
        epochs=settings.tune_epochs,
        learning_rate=settings.tune_learning_rate,
        batch_size=settings.tune_batch_size,
        schedule="cosine",
        max_tokens=max_tokens,
        seed=seed,
    )


def _tune(session: Session, variant: str) -> None:
    workspace = session.workspace
    rows = selected_rows(session.workspace, variant)
    model, read, seed = pool_settings(session)
    stage = f"tuned/{variant}"
    lora = lora_settings(session, model, "warmup")
    main = f"tuned/{variant.partition('@')[0]}"  # which the variant is compared with
    settings = session.settings(TuneSettings, stage, main)
    inputs = [f"selections/{variant}"]
    session.begin(stage, model, lora, settings, seed, inputs=inputs, grown="redo")
    if workspace.receipt(stage):
        log.info("%s: already done", stage)
        return
    if not rows:
        raise SettingError(f"selections/{variant} is empty, so there is nothing to tune on")
    plan = tuning_plan(model, lora, settings, max_tokens=read.max_tokens, seed=seed.seed)
    session.ray()
    share = share_of_cluster(session.execution, session.execution.train_workers)
    receipt = train(workspace, stage, plan, rows, session.execution, share)
    log.info(
        "%s: %d rows, %d steps, loss %s",
        stage,
        *(receipt[key] for key in ("rows", "steps", "train_loss")),
    )
