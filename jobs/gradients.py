"""Gradients of the pool, and of each target."""

from __future__ import annotations

import logging
from typing import Any

from actors.gradient_worker import GradientWorker
from g2is_ray.config import GradientSettings
from g2is_ray.examples import ExampleSet
from g2is_ray.gradient_writer import GradientPart, refuse_invalid
from g2is_ray.workspace import part_name
from jobs.ingest import pool_settings
from jobs.parts import finish_parts
from jobs.session import Session

log = logging.getLogger(__name__)


def gradients(session: Session) -> None:
    """Write `gradients` of the pool (momentum-adjusted), and of each target (plain)."""
    workspace = session.workspace
    model, read, seed = pool_settings(session)
    settings = session.settings(GradientSettings, "gradients")
    parts: list[GradientPart] = []
    for examples, stage, adjust in _stages(session):
        count = ExampleSet(workspace, examples).parts
        workspace.require("warmup", "warmup")
        inputs = [examples, "warmup"]
        facts = {"adjusted": adjust}
        session.begin(stage, model, settings, seed, inputs=inputs, facts=facts, grown="extend")
        parts += [
            GradientPart(examples=examples, stage=stage, part=part, adjust=adjust)
            for part in range(count)
        ]
    arguments = {
        "url": workspace.location(""),
        "settings": {
            "model": model,
            "gradients": settings,
            "seed": seed,
            "execution": session.execution,
            "max_tokens": read.max_tokens,
        },
    }
    receipts = finish_parts(
        session,
        {part: (part.stage, part_name(part.part)) for part in parts},
        "gradients",
        GradientWorker,
        arguments,
        session.execution.workers,
        tasks_per_worker=2,  # one is read or written while the other is computed
    )
    for _, stage, _ in _stages(session):
        _finish(session, stage, [receipts[part] for part in parts if part.stage == stage])


def _stages(session: Session) -> list[tuple[str, str, bool]]:
    """Examples, stage, and whether its gradients are adjusted."""
    own = [(f"targets/{t}/val", f"targets/{t}/gradients", False) for t in session.targets()]
    return [("pool", "gradients", True), *own]


def _finish(session: Session, stage: str, receipts: list[dict[str, Any]]) -> None:
    rows = sum(receipt["rows"] for receipt in receipts)
    invalid = [one for receipt in receipts for one in receipt["invalid"]]
    for one in invalid[:10]:
        log.warning("%s: %s has no usable gradient: %s", stage, one["id"], one["reason"])
    refuse_invalid(stage, invalid, rows)
    facts = {
        "rows": rows,
        "parts": len(receipts),
        "invalid": len(invalid),
        "tokens": sum(receipt["tokens"] for receipt in receipts),
        "seconds": round(sum(receipt["seconds"] for receipt in receipts), 3),
    }
    session.workspace.conclude(stage, facts)
