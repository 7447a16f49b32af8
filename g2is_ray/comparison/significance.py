"""How sure a difference between two methods is, given test rows and seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_interval(differences: NDArray[np.floating], weights: NDArray[Any]) -> Interval:
    """The weighted mean of paired differences, over seeds and test rows.

    Both are samples: of the trainings there could have been, and of the rows that could have been
    asked. The variance is the sum of the two means' own: over rows, that of a ratio (linearized),
    over seeds that of the seeds' means. Degrees of freedom are Satterthwaite's (1946). With one
    seed, nothing is known of the first, and the interval is of the rows alone.

    Args:
        differences: [k, n] of k seeds and n rows, each already multiplied by its row's weight.
        weights: [n], such as a row's number of tokens.
    """
    from scipy.stats import t

    seeds, rows = differences.shape
    total = weights.sum()
    by_seed = differences.sum(axis=1) / total
    mean = float(by_seed.mean())
    residuals = differences.mean(axis=0) - mean * weights
    variances = [(rows / max(1, rows - 1) * np.square(residuals).sum() / total**2, rows - 1)]
    if seeds > 1:
        variances.append((by_seed.var(ddof=1) / seeds, seeds - 1))
    variance = sum(own for own, _ in variances)
    spread = sum(own**2 / max(1, free) for own, free in variances)
    half = t.ppf((1 + CONFIDENCE) / 2, variance**2 / spread) * math.sqrt(variance) if spread else 0
    return Interval(mean=mean, low=mean - half, high=mean + half)
