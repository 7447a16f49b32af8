"""Select rows of the pool for each target: the walk, and what it is compared with."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import numpy as np

from g2is_ray.config import (
    PRESETS,
    ComparisonSettings,
    GraphSettings,
    WalkSettings,
    as_dict,
    build,
)
from g2is_ray.examples import ExampleSet
from g2is_ray.features import GradientSet
from g2is_ray.graph import read_neighbors
from g2is_ray.layout import graph_stage
from g2is_ray.selection import select
from g2is_ray.workspace import STAGE_RECEIPT
from jobs.graph import graph_settings
from jobs.ingest import pool_settings
from jobs.session import Session

log = logging.getLogger(__name__)


def select_rows(session: Session) -> None:
    """Write `selections/T` and its baselines `selections/T@NAME` for each target T."""
    for name in session.targets():
        graph = graph_settings(session, name)
        settings = session.settings(WalkSettings, f"selections/{name}")
        _walk(session, name, name, graph, settings)
        for baseline in session.settings(ComparisonSettings, f"selections/{name}").baselines:
            variant = f"{name}@{baseline}"
            if baseline == "random":
                _random(session, name, variant)
            else:
                overlay = PRESETS[baseline]
                _walk(
                    session,
                    name,
                    variant,
                    build(GraphSettings, as_dict(graph) | overlay),
                    build(WalkSettings, as_dict(settings) | overlay),
                )


def _walk(
    session: Session, target: str, variant: str, graph: GraphSettings, settings: WalkSettings
) -> None:
    workspace = session.workspace
    graph_folder, target_folder = graph_stage(graph.center), f"targets/{target}/gradients"
    workspace.require(graph_folder, "graph" if graph.center else "graph --no-center")
    workspace.require(target_folder, "gradients")
    stage = f"selections/{variant}"
    comparison = session.settings(ComparisonSettings, f"selections/{target}")
    session.begin(
        stage,
        graph,
        settings,
        inputs=["gradients", graph_folder, target_folder],
        remember=as_dict(comparison),
    )
    if workspace.receipt(stage):
        log.info("%s: already done", stage)
        return
    began = time.monotonic()
    selection = select(
        GradientSet(workspace, "gradients", center=graph.center).read_all(),
        read_neighbors(workspace, graph_folder),
        GradientSet(workspace, target_folder).read_all(),
        settings,
    )
    held = ExampleSet(workspace, "pool").take(selection.rows, ["id", "record"])
    lines = selection.lines([row["id"] for row in held])
    _commit(session, stage, lines, held, selection.summary(), began)


def _random(session: Session, target: str, variant: str) -> None:
    """As many rows as the target's selection has, drawn at random."""
    workspace = session.workspace
    main = workspace.require(f"selections/{target}", "select")
    stage = f"selections/{variant}"
    _, _, seed = pool_settings(session)
    session.begin(stage, seed, inputs=["pool", f"selections/{target}"])
    if workspace.receipt(stage):
        log.info("%s: already done", stage)
        return
    began = time.monotonic()
    pool = ExampleSet(workspace, "pool")
    rng = np.random.default_rng([seed.seed, 1])  # not the warm-up's draw
    rows = rng.choice(pool.rows, size=main["selected"], replace=False).tolist()
    held = pool.take(rows, ["id", "record"])
    picks = [
        {"rank": rank, "row": row, "component": None, "step": "random", "similarity": None}
        | {"id": one["id"]}
        for rank, (row, one) in enumerate(zip(rows, held, strict=True))
    ]
    lines = "".join(json.dumps(pick) + "\n" for pick in picks).encode()
    summary = {"budget": len(rows), "selected": len(rows), "components": 0, "per_component": []}
    _commit(session, stage, lines, held, summary, began)


def _commit(
    session: Session,
    stage: str,
    lines: bytes,
    held: list[dict[str, Any]],
    summary: dict[str, Any],
    began: float,
) -> None:
    files = {
        "selection.jsonl": lines,
        "selected.jsonl": "".join(row["record"] + "\n" for row in held).encode(),
        "summary.json": (json.dumps(summary, indent=1) + "\n").encode(),
    }
    facts = {**summary, "seconds": round(time.monotonic() - began, 3)}
    session.workspace.commit(stage, STAGE_RECEIPT, files, facts)
    log.info("%s: %d of %d selected", stage, summary["selected"], summary["budget"])


def selected_rows(session: Session, variant: str) -> list[int]:
    """Pool rows of a finished selection, in the order of picking."""
    session.workspace.require(f"selections/{variant}", "select")
    lines = session.workspace.read_bytes(f"selections/{variant}/selection.jsonl").splitlines()
    return [json.loads(line)["row"] for line in lines]
