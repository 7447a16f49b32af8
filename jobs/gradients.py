"""Gradients of the pool, and of each target."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from actors.workers import EmbeddingOrder, GradientOrder, GradientWorker, ImportChecker
from g2is_ray.config import GradientSettings, ModelSettings, ReadSettings
from g2is_ray.training import imported
from g2is_ray.workspace.layout import POOL, WARMUP
from jobs.features import compute_features, feature_stages
from jobs.ingest import pool_settings
from jobs.parts import finish_parts
from jobs.session import Session

log = logging.getLogger(__name__)


def gradients(session: Session) -> None:
    """Write `gradients` of the pool (momentum-adjusted), and of each target (plain)."""
    model, read, seed = pool_settings(session)
    settings = session.settings(GradientSettings)
    stages = feature_stages(session, "gradients")
    warmup = session.workspace.stage(WARMUP).require()
    if "imported" in warmup:
        _check_import(session, model, read, warmup)
    for stage, examples in stages.items():
        session.begin(
            stage,
            model,
            settings,
            seed,
            inputs=[examples, WARMUP],
            facts={"adjusted": examples == POOL},
            grown="extend",
        )
    order = GradientOrder(
        url=session.workspace.storage.location(""),
        model=model,
        gradients=settings,
        seed=seed,
        execution=session.execution,
        max_tokens=read.max_tokens,
    )
    compute_features(session, stages, GradientWorker, order)


def _check_import(
    session: Session, model: ModelSettings, read: ReadSettings, warmup: Mapping[str, Any]
) -> None:
    """Warn of an adapter that does not do on this model what it did in its training."""
    order = EmbeddingOrder(
        url=session.workspace.storage.location(""),
        model=model,
        execution=session.execution,
        max_tokens=read.max_tokens,
    )
    item = imported.LOSSES
    done = finish_parts(session, {item: (WARMUP, item)}, "warmup", ImportChecker, order, 1)
    if reason := imported.doubt(done[item], warmup, model.model):
        log.warning("warmup: %s", reason)
