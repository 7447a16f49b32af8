"""The random baseline."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from g2is_ray.selector.interface import Choice, Pool, Selector, Target


class Random(Selector):
    """Rows drawn at random."""

    reads = frozenset({"seed"})
    step = "random"

    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        rng = np.random.default_rng([pool.seed, 1])  # not the warm-up's draw
        return ((row, np.nan) for row in rng.permutation(np.flatnonzero(pool.free)).tolist())
