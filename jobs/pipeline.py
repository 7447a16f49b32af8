"""The main job, end to end: `python -m jobs.pipeline --config run.yaml`."""

from __future__ import annotations

import sys

from jobs.evaluate import evaluate
from jobs.gradients import gradients
from jobs.graph import graph
from jobs.ingest import ingest
from jobs.report import report
from jobs.selection import select_rows
from jobs.session import Session
from jobs.tune import tune
from jobs.warmup import warm_up

STAGES = (ingest, warm_up, gradients, graph, select_rows, tune, evaluate, report)
"""In the order of work. Each does nothing when its work is done."""


def run(session: Session) -> None:
    """Do every stage that is not done."""
    for stage in STAGES:
        stage(session)


if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main(["run", *sys.argv[1:]]))
