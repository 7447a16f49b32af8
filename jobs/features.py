"""Features of the pool, and of each target: what gradients and embeddings have in common."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from actors.workers import FeatureWorker, Order
from g2is_ray.config import Features
from g2is_ray.data.examples import ExampleSet
from g2is_ray.features.writer import FeaturePart, refuse_invalid
from g2is_ray.workspace.layout import POOL
from g2is_ray.workspace.workspace import part_name
from jobs.parts import finish_parts
from jobs.session import Session

log = logging.getLogger(__name__)


def feature_stages(session: Session, features: Features) -> dict[str, str]:
    """Stages of the pool and of each target, each with the example set that it is of."""
    own = {f"targets/{name}/{features}": f"targets/{name}/val" for name in session.targets()}
    stages: dict[str, str] = {features: POOL} | own
    for examples in stages.values():
        session.workspace.stage(examples).require()
    return stages


def compute_features(
    session: Session,
    stages: Mapping[str, str],
    worker: type[FeatureWorker[Order]],
    order: Order,
) -> None:
    """Finish the stages, which are begun.

    Args:
        stages: as `feature_stages` gives them.
        order: what the worker is built with.
    """
    workspace = session.workspace
    parts = [
        FeaturePart(examples=examples, stage=stage, part=part)
        for stage, examples in stages.items()
        for part in range(ExampleSet(workspace, examples).parts)
    ]
    receipts = finish_parts(
        session,
        {part: (part.stage, part_name(part.part)) for part in parts},
        next(iter(stages)),
        worker,
        order,
        session.execution.workers,
        tasks_per_worker=2,  # one is read or written while the other is computed
    )
    for stage in stages:
        _conclude(session, stage, [receipts[part] for part in parts if part.stage == stage])


def _conclude(session: Session, stage: str, receipts: list[dict[str, Any]]) -> None:
    rows = sum(receipt["rows"] for receipt in receipts)
    invalid = [one for receipt in receipts for one in receipt["invalid"]]
    for one in invalid[:10]:
        log.warning("%s: %s cannot be used: %s", stage, one["id"], one["reason"])
    refuse_invalid(stage, invalid, rows)
    facts = {
        "rows": rows,
        "parts": len(receipts),
        "invalid": len(invalid),
        "tokens": sum(receipt["tokens"] for receipt in receipts),
        "seconds": round(sum(receipt["seconds"] for receipt in receipts), 3),
    }
    session.workspace.stage(stage).conclude(facts)
