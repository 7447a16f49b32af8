"""The main job, end to end: `python -m jobs.main_job --config run.yaml`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from g2is_ray.config import PoolSettings, WarmupSettings
from g2is_ray.graph.search import check_neighbors, require_faiss
from g2is_ray.selection.task import Task
from g2is_ray.workspace.layout import POOL
from jobs.embeddings import embeddings
from jobs.evaluate import evaluate
from jobs.gradients import gradients
from jobs.graph import write_graphs
from jobs.ingest import ingest, pool_settings
from jobs.model import check_adapter
from jobs.redo import redo
from jobs.report import report
from jobs.selection import (
    all_tasks,
    check_budget,
    check_selectors,
    features_read,
    graphs_read,
    make_selections,
    selection_names,
)
from jobs.session import Session
from jobs.tune import tune
from jobs.warmup import check_folders, warm_up


def stages(tasks: Sequence[Task]) -> Iterator[tuple[str, Callable[[Session], object]]]:
    """The names and jobs of a run, in the order of work. A job does nothing when its work is done.

    Features and graphs are made only if some selection or baseline reads them.
    """
    yield "ingest", ingest
    read = features_read(tasks)
    if "gradients" in read:
        yield "warm_up", warm_up
        yield "gradients", gradients
    if "embeddings" in read:
        yield "embeddings", embeddings
    if graphs := graphs_read(tasks):
        yield "graph", partial(write_graphs, wanted=graphs)
    yield "select_rows", partial(make_selections, tasks=tasks)
    yield "tune", tune
    yield "evaluate", evaluate
    yield "report", report


def run(session: Session) -> None:
    """Do every stage that is not done."""
    session.settings(PoolSettings)  # says first what is missing of it
    check_folders(session)
    check_selectors(session)
    tasks = all_tasks(session)
    if graphs_read(tasks):
        require_faiss()
    _check_adapter(session, tasks)
    redo(session)
    for name, job in stages(tasks):
        began = time.monotonic()
        job(session)
        seconds = round(time.monotonic() - began, 3)
        session.events.tell("job_done", {"job": name, "seconds": seconds})
        if name == "ingest":
            _check_sizes(session, tasks)


def _check_adapter(session: Session, tasks: Sequence[Task]) -> None:
    """Refuse now what the warm-up and tuning would refuse after the pool is read."""
    if not session.workspace.stage("warmup").finished():
        warmed_up = not session.settings(WarmupSettings).warmup_from
        gradients = warmed_up and "gradients" in features_read(tasks)
        check_adapter(session, pool_settings(session)[0], gradients=gradients)


def _check_sizes(session: Session, tasks: Sequence[Task]) -> None:
    """Refuse now what graph and selection would refuse after the hours that gradients take."""
    rows = session.workspace.stage(POOL).require()["rows"]
    for graph in graphs_read(tasks):
        check_neighbors(graph.neighbors, rows)
    for name in selection_names(session):
        check_budget(session, name)


if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main(["run", *sys.argv[1:]]))
