"""Measure base model and tuned models on each target's test rows."""

from __future__ import annotations

import logging
from typing import Any

from actors.workers import EvaluationOrder, EvaluationWorker
from g2is_ray.config import EvaluateSettings, ReadSettings
from g2is_ray.training.evaluation import Measured
from g2is_ray.workspace.layout import BASE, score_name, variants_in
from jobs.ingest import pool_settings
from jobs.parts import finish_parts
from jobs.session import Session

log = logging.getLogger(__name__)


def evaluate(session: Session) -> None:
    """Write `evaluations/T` for each target T that has test rows."""
    for target in session.targets():
        if session.workspace.storage.exists(f"targets/{target}/test/receipt.json"):
            _evaluate(session, target)
        else:
            log.warning("evaluations/%s: no test rows; give --test %s=FILE", target, target)


def _evaluate(session: Session, target: str) -> None:
    workspace = session.workspace
    variants = variants_in(workspace, target)
    for variant in variants or [target]:
        workspace.stage(f"tuned/{variant}").require_current()
    model, read, _ = pool_settings(session)
    stage = f"evaluations/{target}"
    settings = session.settings(EvaluateSettings, stage)
    session.begin(stage, model, settings, inputs=[f"targets/{target}/test"])
    items = [Measured(name=BASE)] + [
        Measured(
            name=score_name(target, variant),
            adapter=f"tuned/{variant}/adapter",
            fingerprint=workspace.stage(f"tuned/{variant}").fingerprint(),
        )
        for variant in variants
    ]
    order = EvaluationOrder(
        url=workspace.storage.location(""),
        target=target,
        model=model,
        evaluate=settings,
        execution=session.execution,
        max_tokens=read.max_tokens,
    )
    receipts = finish_parts(
        session,
        {item: (stage, item.name) for item in items},
        stage,
        EvaluationWorker,
        order,
        session.execution.workers,
        is_current=Measured.is_done,
    )
    scores = {item.name: receipts[item] for item in items}
    seconds = round(sum(one["seconds"] for one in scores.values()), 3)
    facts = {"models": list(scores), "seconds": seconds}
    workspace.stage(stage).conclude(facts)
    for name, one in scores.items():
        log.info("%s: %s: loss %.4f, exact match %s", stage, name, one["loss"], one["exact_match"])
        _warn_of_cuts(stage, name, one, settings, read)


def _warn_of_cuts(
    stage: str, name: str, scores: dict[str, Any], settings: EvaluateSettings, read: ReadSettings
) -> None:
    if scores.get("cut_replies"):
        log.warning(
            "%s: %s: %d of %d replies are cut at %d tokens, so answers may be missing; raise "
            "max_new_tokens",
            *(stage, name, scores["cut_replies"], scores["exact_match_rows"]),
            settings.max_new_tokens,
        )
    if scores.get("cut_rows") and name == BASE:
        log.warning(
            "%s: %d test rows are longer than %d tokens and are cut there; raise max_tokens",
            *(stage, scores["cut_rows"], read.max_tokens),
        )
