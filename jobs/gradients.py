"""Gradients of the pool, and of each target."""

from __future__ import annotations

from actors.feature_workers import GradientWorker
from g2is_ray.config import GradientSettings
from g2is_ray.layout import GRADIENTS, POOL, WARMUP
from jobs.features import compute_features, feature_stages
from jobs.ingest import pool_settings
from jobs.session import Session


def gradients(session: Session) -> None:
    """Write `gradients` of the pool (momentum-adjusted), and of each target (plain)."""
    model, read, seed = pool_settings(session)
    settings = session.settings(GradientSettings, GRADIENTS)
    stages = feature_stages(session, "gradients")
    session.workspace.require(WARMUP, "warmup")
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
    built_with = {
        "model": model,
        "gradients": settings,
        "seed": seed,
        "execution": session.execution,
        "max_tokens": read.max_tokens,
    }
    compute_features(session, stages, GradientWorker, built_with)
