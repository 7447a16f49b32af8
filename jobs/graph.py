"""The kNN graph of the pool's gradients or embeddings."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from actors.connection.cluster import share_of_cluster
from actors.workers import GraphOrder, GraphWorker
from g2is_ray.config import GraphSettings, as_dict
from g2is_ray.features.store import FeatureSet
from g2is_ray.graph.builder import faiss_index
from g2is_ray.graph.plan import (
    GraphPlan,
    GraphTask,
    comparison,
    exact_instead,
    extend_plan,
    make_plan,
    merges,
    preparation,
    read_plan,
    write_plan,
)
from g2is_ray.graph.recall import measure_recall
from g2is_ray.graph.search import check_neighbors, require_faiss
from g2is_ray.selector.methods import BaselineSettings, methods_of
from g2is_ray.selector.registry import reads_of
from g2is_ray.workspace.layout import GRAPH_KINDS, graph_stage
from jobs.parts import StageWorkers
from jobs.session import Session

log = logging.getLogger(__name__)

_WORTHWHILE = 0.5  # share of the lists; probing more is slower than comparing all rows


def graph_settings(session: Session, target: str = "") -> GraphSettings:
    """Graph settings in force, as the target's selection, a graph or a selection was made with."""
    known = session.workspace.stages()
    graphs = [stage for kind in GRAPH_KINDS if (stage := graph_stage(*kind)) in known]
    made = graphs + [f"selections/{name}" for name in _selections(session)]
    stages = [f"selections/{target}"] if target else []
    return session.settings(GraphSettings, *stages, *made[:1])


def _selections(session: Session) -> list[str]:
    """Targets, or joint, that the workspace knows a selection for."""
    begun = (stage.partition("/") for stage in session.workspace.stages())
    return [name for folder, _, name in begun if folder == "selections" and "@" not in name]


def graph(session: Session) -> None:
    """Write the graph in force, those that baselines read, and those that the pool outgrew."""
    settings = graph_settings(session)
    wanted = [settings]
    for main in _selections(session) or [""]:
        remembered = [f"selections/{main}"] if main else []
        baselines = session.settings(BaselineSettings, *remembered).baselines
        own = graph_settings(session, main)
        wanted += [
            method.applied(own)
            for method in methods_of("baselines", baselines)
            if "graph" in reads_of(method.selector)
        ]
    wanted += [
        dataclasses.replace(settings, center=center, features=features)
        for center, features in GRAPH_KINDS
        if session.workspace.stage(graph_stage(center, features)).outgrown()
    ]
    write_graphs(session, wanted)


def write_graphs(session: Session, wanted: Iterable[GraphSettings]) -> None:
    """Write these graphs, each once, as far as they are not done."""
    for settings in dict.fromkeys(wanted):
        _write(session, settings)


def _write(session: Session, settings: GraphSettings) -> None:
    workspace, kind = session.workspace, settings.features
    pool = workspace.stage(kind).require_current()
    require_faiss()
    check_neighbors(settings.neighbors, pool["rows"])
    stage = graph_stage(settings.center, kind)
    plan = read_plan(workspace, stage)
    mean_rows = plan.mean_rows if plan else pool["rows"] if settings.center else 0
    decides = as_dict(settings) | {"mean_rows": mean_rows}  # another mean makes another graph
    del decides["features"]  # the stage's name and its input say them
    session.begin(stage, inputs=[kind], facts=decides, remember=as_dict(settings), grown="extend")
    features = FeatureSet(workspace, kind, center=settings.center, of_graph=True)
    if plan is None:
        plan = _plan(session, stage, settings, features)
    elif plan.parts < features.parts:
        plan = _extend(session, stage, plan, features)
    last = merges(features.parts)
    with _workers(session, stage, settings) as workers:
        if all(workspace.stage(stage).verified(task.piece) for task in last):
            receipts = _do(workers, stage, last)
        else:
            plan = _prepare(session, workers, stage, settings, plan, features)
            for tasks in comparison(plan, features.parts):
                receipts = _do(workers, stage, tasks)
    edges = sum(receipt["edges"] for receipt in receipts)
    facts = {
        "rows": features.rows,
        "parts": features.parts,
        "search": plan.search,
        "edges": edges,
        "mean_similarity": sum(r["similarity_sum"] for r in receipts) / max(1, edges),
        "seconds": round(sum(receipt["seconds"] for receipt in receipts), 3),
        **measure_recall(workspace, stage, features),
    }
    workspace.stage(stage).conclude(facts)
    log.info(
        "%s: %s search, recall %.3f, mean similarity of neighbors %.3f",
        stage,
        *(facts[name] for name in ("search", "recall", "mean_similarity")),
    )
    if facts["recall_high"] < settings.recall:
        log.warning(
            "%s: recall is below %g; run `%s` to rebuild it",
            stage,
            settings.recall,
            session.redo_command([stage]),
        )


def _plan(session: Session, stage: str, settings: GraphSettings, features: FeatureSet) -> GraphPlan:
    if settings.graph not in ("auto", "exact", "ivf"):
        faiss_index(settings.graph, features.dimensions)  # refused before any work is done
    plan = make_plan(features, settings, session.execution.memory_bytes, _device(session))
    write_plan(session.workspace, stage, plan, features)
    log.info("%s: %s search in %d groups of parts", stage, plan.search, len(plan.groups))
    return plan


def _extend(session: Session, stage: str, plan: GraphPlan, features: FeatureSet) -> GraphPlan:
    log.info("%s: extending by %d parts", stage, features.parts - plan.parts)
    if features.mean is not None:
        now = features.pool_mean()
        moved = np.linalg.norm(now - features.mean) / np.linalg.norm(now)
        log.info(
            "%s: stays centered on the mean of its first %d rows, which is %.1f%% off the pool's "
            "mean; run `%s` to center it on the pool's",
            stage,
            plan.mean_rows,
            100 * moved,
            session.redo_command([stage]),
        )
    return extend_plan(
        session.workspace,
        stage,
        plan,
        features,
        session.execution.memory_bytes,
        _device(session),
    )


def _prepare(
    session: Session,
    workers: StageWorkers,
    stage: str,
    settings: GraphSettings,
    plan: GraphPlan,
    features: FeatureSet,
) -> GraphPlan:
    """Find how many lists must be probed; with `auto`, compare all rows if they are too many."""
    for tasks in preparation(plan, features.parts):
        receipts = _do(workers, stage, tasks)
    if plan.search == "ivf":
        (tuned,) = receipts
        log.info("%s: each row probes %d of %d lists", stage, tuned["probe"], tuned["lists"])
        if settings.graph == "auto" and tuned["probe"] > _WORTHWHILE * tuned["lists"]:
            log.info(
                "%s: probing that many lists would not be faster; comparing all rows instead", stage
            )
            return exact_instead(session.workspace, stage, plan, features)
    return plan


def _device(session: Session) -> str:
    session.ray()
    return "cuda" if share_of_cluster(session.execution).num_gpus > 0 else "cpu"


def _workers(session: Session, stage: str, settings: GraphSettings) -> StageWorkers:
    return StageWorkers(
        session,
        GraphWorker,
        GraphOrder(url=session.workspace.storage.location(""), stage=stage, settings=settings),
        session.execution.workers,
        affinity=lambda task: task.group,
    )


def _do(workers: StageWorkers, stage: str, tasks: Sequence[GraphTask]) -> list[dict[str, Any]]:
    items = {task: (stage, task.piece) for task in tasks}
    return list(workers.finish(items, f"{stage}, {tasks[0].kind}").values())
