"""A control for length: rows drawn at random among those with short answers.

    g2is compare --methods random short=benchmarks/short_answers.py:ShortAnswers ...

Methods differ in the length of rows that they prefer. If a selection beats random rows, but not
random rows that are as short, it is the length that helped.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from g2is_ray.selector.interface import Choice, Pool, Target
from g2is_ray.selector.registry import Random

MOST_TOKENS = 50
"""Supervised tokens of the longest rows that are drawn."""


class ShortAnswers(Random):
    """Rows of at most `MOST_TOKENS` supervised tokens, drawn at random; then the others."""

    reads = Random.reads | {"tokens"}

    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        rows = np.array([row for row, _ in super().picks(pool, target, products)], dtype=np.int64)
        short = pool.tokens[rows] <= MOST_TOKENS
        return ((row, np.nan) for row in np.concatenate([rows[short], rows[~short]]).tolist())
