"""The grid on a GPU: nearly the whole pool instead of 10,000 rows of it, in calls of ten minutes.

    python benchmarks/evidence_gpu.py --data DATA --workspace runs/gpu --model MODEL
    python benchmarks/evidence_gpu.py --data DATA --workspace runs/gpu-dry --dry-run    # on a CPU

Each call goes on where the last one stopped, and ends with the tables of what there is by then, in
`runs/gpu/results`. All arguments of `evidence_grid.py` are taken. Each pool has 35,000 rows: all of
the benchmark's but those of the targets' kinds, of which a pool has its own target's alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import evidence_grid

LEARNING_RATES = {"examples/tiny-lm": ("1e-3", "3e-3")}  # of warm-up and tuning
OTHER_MODELS = ("2e-4", "5e-4")  # of 100 million parameters and more


def main() -> None:
    given = sys.argv[1:]
    known = evidence_grid.parser().parse_args(given)
    name = "/".join(Path(known.model).parts[-2:])
    warm_up, tune = LEARNING_RATES.get(name, OTHER_MODELS)
    own = ["--pool-rows", "35000", "--minutes", "8"]
    own += ["--warmup-learning-rate", warm_up, "--learning-rate", tune]
    own += ["--results", str(known.workspace / "results")]
    evidence_grid.main([*own, *given])  # of an argument given twice the last counts


if __name__ == "__main__":
    main()
