"""Time and memory of facility location on a synthetic graph and target.

    python benchmarks/facility_location.py --rows 1000000 --picks 10000

Rows lie in clusters; the neighbors of a row are drawn from its own, with similarities that fall
from 0.9 to 0.3. A target row is similar to the rows of one cluster, and hardly to any other.
"""

from __future__ import annotations

import argparse
import resource
import time
from itertools import islice

import numpy as np

from g2is_ray.selector.graph import FacilityLocation
from g2is_ray.selector.interface import Pool, Target

CLUSTER, TARGET_ROWS, NEIGHBORS = 200, 64, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--picks", type=int, default=10_000)
    given = parser.parse_args()
    n, rng = given.rows - given.rows % CLUSTER, np.random.default_rng(0)
    places = 5 * np.arange(NEIGHBORS, dtype=np.int32) + rng.integers(0, CLUSTER, (n, 1), np.int32)
    steps = 1 + places % (CLUSTER - 1)  # which is prime, so that no neighbor comes twice
    rows = np.arange(n, dtype=np.int32)[:, None]
    neighbors = rows - rows % CLUSTER + (rows + steps) % CLUSTER
    similarities = np.sort(rng.uniform(0.3, 0.9, (n, NEIGHBORS)).astype(np.float32))[:, ::-1]
    cosines = rng.normal(0, 0.02, (TARGET_ROWS, n)).astype(np.float32)
    for row, cluster in enumerate(rng.integers(0, n // CLUSTER, TARGET_ROWS)):
        cosines[row, cluster * CLUSTER : (cluster + 1) * CLUSTER] += 0.3
    products = np.concatenate([cosines, cosines.mean(axis=0, keepdims=True)])
    pool = Pool(free=np.ones(n, dtype=bool), neighbors=neighbors, similarities=similarities)
    features = np.zeros((TARGET_ROWS, 1), dtype=np.float32)
    target = Target(features=features, texts=[], subtasks=[""] * TARGET_ROWS)
    print(f"{n} rows, inputs {memory():.1f} GB", flush=True)
    began = time.monotonic()
    picks = FacilityLocation().picks(pool, target, products)
    print(f"first pick after {next(picks) and time.monotonic() - began:.1f} s", flush=True)
    count = 1 + sum(1 for _ in islice(picks, given.picks - 1))
    print(f"{count} picks after {time.monotonic() - began:.1f} s, at most {memory():.1f} GB")


def memory() -> float:
    """Most that the process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
