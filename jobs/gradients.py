"""Gradients of the pool, and of each target."""

from __future__ import annotations

import logging

from actors.gradient_worker import GradientWorker
from g2is_ray.config import GradientSettings
from g2is_ray.errors import WorkError
from g2is_ray.examples import ExampleSet
from g2is_ray.features import MAX_INVALID
from jobs.ingest import pool_settings
from jobs.parts import finish_parts, record_stage
from jobs.session import Session

log = logging.getLogger(__name__)


def gradients(session: Session) -> None:
    """Write `gradients` of the pool (momentum-adjusted), and of each target (plain)."""
    _write(session, "pool", "gradients", adjust=True)
    for name in session.targets():
        _write(session, f"targets/{name}/val", f"targets/{name}/gradients", adjust=False)


def _write(session: Session, examples_folder: str, stage: str, *, adjust: bool) -> None:
    workspace = session.workspace
    examples = ExampleSet(workspace, examples_folder)
    workspace.require("warmup", "warmup")
    model, read, seed = pool_settings(session)
    settings = session.settings(GradientSettings, "gradients")
    session.begin(
        stage,
        model,
        settings,
        seed,
        inputs=[examples_folder, "warmup"],
        facts={"adjusted": adjust},
    )
    receipts = finish_parts(
        session,
        stage,
        examples.parts,
        GradientWorker,
        {
            "url": workspace.location(""),
            "examples": examples_folder,
            "stage": stage,
            "settings": {
                "model": model,
                "gradients": settings,
                "seed": seed,
                "execution": session.execution,
                "max_tokens": read.max_tokens,
                "adjust": adjust,
            },
        },
        session.execution.workers,
    )
    invalid = [one for receipt in receipts for one in receipt["invalid"]]
    for one in invalid[:10]:
        log.warning("%s: %s has no usable gradient: %s", stage, one["id"], one["reason"])
    if len(invalid) > MAX_INVALID * examples.rows:
        raise WorkError(
            f"{stage}: {len(invalid)} of {examples.rows} examples have no usable gradient, more "
            f"than {MAX_INVALID:.0%}; the first is {invalid[0]['id']}: {invalid[0]['reason']}"
        )
    record_stage(
        session,
        stage,
        {
            "rows": examples.rows,
            "parts": examples.parts,
            "invalid": len(invalid),
            "tokens": sum(receipt["tokens"] for receipt in receipts),
            "seconds": round(sum(receipt["seconds"] for receipt in receipts), 3),
        },
    )
