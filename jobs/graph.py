"""The kNN graph of the pool's gradients."""

from __future__ import annotations

import logging

from actors.graph_worker import GraphWorker
from g2is_ray.config import ComparisonSettings, GraphSettings
from g2is_ray.graph import check_neighbors, require_faiss
from g2is_ray.layout import graph_stage
from jobs.parts import finish_parts
from jobs.session import Session

log = logging.getLogger(__name__)


def graph_settings(session: Session, target: str = "") -> GraphSettings:
    """Graph settings in force, as the target's selection or the graph was made with."""
    stages = [f"selections/{target}"] if target else []
    return session.settings(GraphSettings, *stages, graph_stage(True), graph_stage(False))


def graph(session: Session) -> None:
    """Write the graph; and the published one too, if it is to be compared with."""
    settings = graph_settings(session)
    _write(session, settings)
    if settings.center and "paper" in session.settings(ComparisonSettings, "pool").baselines:
        _write(session, GraphSettings(neighbors=settings.neighbors, center=False))


def _write(session: Session, settings: GraphSettings) -> None:
    workspace = session.workspace
    pool = workspace.require("gradients", "gradients")
    require_faiss()
    check_neighbors(settings.neighbors, pool["rows"])
    stage = graph_stage(settings.center)
    session.begin(stage, settings, inputs=["gradients"])
    arguments = {
        "url": workspace.location(""),
        "stage": stage,
        "neighbors": settings.neighbors,
        "center": settings.center,
    }
    items = {part: (stage, part) for part in range(pool["parts"])}
    receipts = finish_parts(
        session,
        items,
        stage,
        GraphWorker,
        arguments,
        workers=1,  # each holds the whole pool in memory
        gpus_help=False,
    ).values()
    edges = sum(receipt["edges"] for receipt in receipts)
    facts = {
        "rows": pool["rows"],
        "parts": pool["parts"],
        "edges": edges,
        "mean_similarity": sum(r["similarity_sum"] for r in receipts) / max(1, edges),
        "seconds": round(sum(receipt["seconds"] for receipt in receipts), 3),
    }
    workspace.conclude(stage, facts)
    log.info("%s: mean similarity of neighbors %.3f", stage, facts["mean_similarity"])
