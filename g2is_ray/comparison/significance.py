"""Confidence intervals of the difference between two methods, over test rows and seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its confidence interval at the level `CONFIDENCE`."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero is outside of the interval."""
        return self.low > 0 or self.high < 0


def paired_interval(differences: NDArray[np.floating], weights: NDArray[Any]) -> Interval:
    """Return the weighted mean of paired differences over seeds and test rows, with its interval.

    Seeds are a sample of possible trainings, and rows a sample of possible test rows. The variance
    is the sum of two: over rows, the linearized variance of a ratio; over seeds, the variance of
    the mean over seeds. Degrees of freedom are Satterthwaite's (1946). With one seed, the interval
    covers the rows only.

    Args:
        differences: [k, n] of k seeds and n rows, each multiplied by the weight of its row.
        weights: [n], such as the number of tokens of each row.
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
    variance = sum(part for part, _ in variances)
    spread = sum(part**2 / max(1, freedom) for part, freedom in variances)
    half = t.ppf((1 + CONFIDENCE) / 2, variance**2 / spread) * math.sqrt(variance) if spread else 0
    return Interval(mean=mean, low=mean - half, high=mean + half)
