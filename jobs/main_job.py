"""The main job, end to end: `python -m jobs.main_job --config run.yaml`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

from g2is_ray.config import PoolSettings, WarmupSettings
from g2is_ray.graph.search import check_neighbors, require_faiss
from jobs.embeddings import embeddings
from jobs.evaluate import evaluate
from jobs.gradients import gradients
from jobs.graph import graph, graph_settings
from jobs.ingest import ingest, pool_settings
from jobs.model import check_adapter
from jobs.redo import redo
from jobs.report import report
from jobs.selection import check_budget, select_rows
from jobs.selection_tasks import check_selectors, features_read, selection_names
from jobs.session import Session
from jobs.tune import tune
from jobs.warmup import check_folders, warm_up


def stages(session: Session) -> Iterator[Callable[[Session], object]]:
    """In the order of work. Each does nothing when its work is done.

    Features that no selection, no baseline and no graph reads are left out.
    """
    yield ingest
    read = features_read(session)
    if "gradients" in read:
        yield from (warm_up, gradients)
    if "embeddings" in read:
        yield embeddings
    yield from (graph, select_rows, tune, evaluate, report)


def run(session: Session) -> None:
    """Do every stage that is not done."""
    session.settings(PoolSettings, "pool")  # says first what is missing of it
    require_faiss()
    check_folders(session)
    check_selectors(session)
    _check_adapter(session)
    redo(session)
    for stage in stages(session):
        began = time.monotonic()
        stage(session)
        seconds = round(time.monotonic() - began, 3)
        session.events.tell("job_done", {"job": stage.__name__, "seconds": seconds})
        if stage is ingest:
            _check_sizes(session)


def _check_adapter(session: Session) -> None:
    """Refuse now what the warm-up and tuning would refuse after the pool is read."""
    if not session.workspace.finished("warmup"):
        warmed_up = not session.settings(WarmupSettings, "warmup").warmup_from
        gradients = warmed_up and "gradients" in features_read(session)
        check_adapter(session, pool_settings(session)[0], gradients=gradients)


def _check_sizes(session: Session) -> None:
    """Refuse now what graph and walk would refuse after the hours that gradients take."""
    rows = session.workspace.require("pool", "ingest")["rows"]
    for target in selection_names(session):
        check_neighbors(graph_settings(session, target).neighbors, rows)
        check_budget(session, target)


if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main(["run", *sys.argv[1:]]))
