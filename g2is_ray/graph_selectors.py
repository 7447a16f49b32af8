"""Selectors that also go by the kNN graph: by what is like a row, not by the row alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from g2is_ray.influence import Less
from g2is_ray.selector import Choice, Pool, Target, descending


class GraphDiverse(Less):
    """As `Less`, but the neighbors of a pick are left out.

    When nothing else is left, the round begins anew with those that were left out.
    """

    reads = frozenset({"gradients", "graph"})

    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        scores, left = products.max(axis=0), pool.free.copy()
        while left.any():
            allowed = left.copy()
            for row in descending(scores, left):
                if allowed[row]:
                    near = pool.neighbors[row]
                    allowed[near[near >= 0]] = False
                    left[row] = False
                    yield row, float(scores[row])
