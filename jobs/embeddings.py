"""Embeddings of the pool, and of each target, by the base model."""

from __future__ import annotations

from actors.workers import EmbeddingOrder, EmbeddingWorker
from jobs.features import compute_features, feature_stages
from jobs.ingest import pool_settings
from jobs.session import Session


def embeddings(session: Session) -> None:
    """Write `embeddings` of the pool, and of each target."""
    model, read, _ = pool_settings(session)
    stages = feature_stages(session, "embeddings")
    for stage, examples in stages.items():
        session.begin(stage, model, inputs=[examples], grown="extend")
    order = EmbeddingOrder(
        url=session.workspace.storage.location(""),
        model=model,
        execution=session.execution,
        max_tokens=read.max_tokens,
    )
    compute_features(session, stages, EmbeddingWorker, order)
