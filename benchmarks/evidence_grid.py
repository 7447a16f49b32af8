"""The grid of issue 18: seven targets, three pools, all selectors, two budgets, five seeds.

    nice -n 19 python benchmarks/evidence_grid.py --data DATA --workspace runs/grid
    python benchmarks/evidence_grid.py --workspace runs/grid --tables
    python benchmarks/evidence_grid.py --data DATA --workspace runs/grid-dry --dry-run

The first runs trials, the most informative first, until it is stopped; given again, it goes on.
Trials that the results folder has from an earlier machine are not run again. The second brings
that folder up to date: `trials.jsonl`, a line per trial, and `tables.md`. One process on one core;
neither Ray nor a GPU is needed.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and BLAS read it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the library of this checkout

from grid.design import HERE, Scale, Settings, TrialKey, all_trials
from grid.results import Results
from grid.tables import write_tables

from g2is_ray.config import ExecutionSettings, ModelSettings, WarmupSettings

DRY = Scale(pool_rows=300, target_rows=16, test_rows=30, general_rows=20)
log = logging.getLogger("grid")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run trials, or write tables, as the command line or `arguments` say."""
    given = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder = given.results or (
        given.workspace / "results" if given.dry_run else HERE.parent / "docs/evidence/grid"
    )
    trials = list(all_trials(1 if given.dry_run else given.seeds))
    if given.dry_run:  # of 300 rows, 1 % is less than the longest row
        trials = [key for key in trials if key.budget.share > 0.01]
    results = Results(folder, given.workspace)
    if not given.tables:
        scale = DRY if given.dry_run else replace(Scale(), pool_rows=given.pool_rows)
        run(given, scale, trials, results)
    results.collect()
    write_tables(results, trials)


def parser() -> argparse.ArgumentParser:
    """All arguments."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, default=Path("runs/grid"))
    parser.add_argument("--data", type=Path, help="folder with pool.jsonl.gz and targets")
    parser.add_argument("--model", default=str(HERE.parent / "examples/tiny-lm"))
    parser.add_argument("--results", type=Path, help="default: docs/evidence/grid")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pool-rows", type=int, default=Scale().pool_rows)
    parser.add_argument("--warmup-learning-rate", type=float, default=1e-3)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--most", type=int, help="trials after which to stop")
    parser.add_argument("--minutes", type=float, help="after which no further trial is begun")
    parser.add_argument("--tables", action="store_true", help="only write the results folder")
    parser.add_argument("--dry-run", action="store_true", help="300 rows, 30 test rows, one seed")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def run(
    given: argparse.Namespace, scale: Scale, trials: Sequence[TrialKey], results: Results
) -> None:
    """Run the trials that are left."""
    import torch  # takes seconds to import, which tables need not wait for
    from grid.trials import Runner

    if given.data is None:
        raise SystemExit("--data is not set: the folder with pool.jsonl.gz and target-*.jsonl")
    torch.set_num_threads(given.threads)
    name = "/".join(Path(given.model).parts[-2:])
    rates = {"warmup": given.warmup_learning_rate, "tuning": given.learning_rate}
    results.claim({"model": name, "learning_rates": rates, **asdict(scale)})
    small = 0 if torch.cuda.is_available() else 2048  # on a CPU 512, the default, is slower
    settings = Settings(
        model=ModelSettings(model=given.model),
        warmup=WarmupSettings(warmup_learning_rate=given.warmup_learning_rate),
        learning_rate=given.learning_rate,
        execution=ExecutionSettings(batch_tokens=small),
    )
    left = [key for key in trials if not results.has(key)]
    began = time.monotonic()
    runner = Runner(given.workspace, given.data, scale, settings, commit())
    for number, key in enumerate(left[: given.most], start=1):
        if given.minutes and time.monotonic() - began > 60 * given.minutes:
            log.info("stopped after %g minutes; give the command again to go on", given.minutes)
            break
        runner.run(key)
        log.info("%d of %d: %s", number, len(left), key)


def commit() -> str:
    """The checkout's commit, with a mark if files differ from it."""
    text = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=HERE,
        capture_output=True,
        text=True,
    ).stdout
    return text.strip() or "unknown"


if __name__ == "__main__":
    main()
