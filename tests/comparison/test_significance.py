"""Intervals of paired differences equal those of textbooks and have the stated coverage."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from g2is_ray.comparison.significance import paired_interval


def test_with_one_seed_it_is_the_t_interval_over_rows():
    differences = np.random.default_rng(0).standard_normal(30)
    found = paired_interval(differences[None], np.ones(30))
    low, high = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_with_equal_rows_it_is_the_t_interval_over_seeds():
    by_seed = np.random.default_rng(0).standard_normal(5)
    found = paired_interval(np.repeat(by_seed[:, None], 9, axis=1), np.ones(9))
    low, high = ttest_1samp(by_seed, 0).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((by_seed.mean(), low, high))


def test_the_mean_is_weighted():
    found = paired_interval(np.array([[2.0, 1.0]]), np.array([1, 3]))
    assert found.mean == pytest.approx(3 / 4)


def test_no_difference_has_an_interval_without_width():
    found = paired_interval(np.zeros((3, 8)), np.ones(8))
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert not found.excludes_zero


@pytest.mark.parametrize("spread", [(1.0, 0.0), (0.0, 1.0), (1.0, 0.3)], ids=str)
def test_the_coverage_is_about_the_confidence_level(spread):
    """Rows and seeds are drawn 1,000 times, with lengths as weights."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(1000):
        weights = rng.integers(5, 200, 40)
        rows = rng.standard_normal(40) * spread[0]
        seeds = rng.standard_normal((3, 1)) * spread[1]
        noise = rng.standard_normal((3, 40)) * 0.1
        found = paired_interval((0.5 + rows + seeds + noise) * weights, weights)
        covered += found.low <= 0.5 <= found.high
    assert 920 <= covered <= 995
