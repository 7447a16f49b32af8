"""Tune an adapter on each selection."""

from __future__ import annotations

import logging

from g2is_ray.config import TuneSettings
from g2is_ray.errors import SettingError
from g2is_ray.selection.files import selected_rows
from g2is_ray.training.plans import tuning_plan
from g2is_ray.workspace.layout import variants_in
from jobs.ingest import pool_settings
from jobs.model import lora_settings
from jobs.session import Session
from jobs.training import train_stage

log = logging.getLogger(__name__)


def tune(session: Session) -> None:
    """Write `tuned/T` for each selection of each target."""
    chosen: dict[str, None] = {}  # without duplicates: targets may share a joint selection
    for target in session.targets():
        variants = variants_in(session.workspace, target)
        if not variants:
            session.workspace.stage(f"selections/{target}").require()
        chosen |= dict.fromkeys(variants)
    for variant in chosen:
        _tune(session, variant)


def _tune(session: Session, variant: str) -> None:
    workspace = session.workspace
    rows = selected_rows(session.workspace, variant)
    model, read, seed = pool_settings(session)
    stage = f"tuned/{variant}"
    lora = lora_settings(session, model, "warmup")
    main = f"tuned/{variant.partition('@')[0]}"  # the selection that the variant is compared with
    settings = session.settings(TuneSettings, stage, main)
    inputs = [f"selections/{variant}"]
    session.begin(stage, model, lora, settings, seed, inputs=inputs, grown="redo")
    if workspace.stage(stage).verified():
        log.info("%s: already done", stage)
        return
    if not rows:
        raise SettingError(
            f"selections/{variant} is empty: there are no rows to tune on; raise the budget"
        )
    plan = tuning_plan(model, lora, settings, max_tokens=read.max_tokens, seed=seed.seed)
    train_stage(session, stage, plan, rows)
