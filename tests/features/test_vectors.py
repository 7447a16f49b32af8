"""Rows get unit length and keep their direction; invalid rows stay zero and leave the mean."""

import numpy as np
import pytest

from g2is_ray.features.vectors import mean_of_valid, normalize

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_rows_of_any_scale_get_length_one_and_keep_their_direction(scale):
    unit = normalize(X * np.float32(scale))
    assert unit.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(unit, X / np.linalg.norm(X, axis=1, keepdims=True), rtol=1e-5)


def test_rows_of_zeros_stay_zero_and_do_not_enter_the_mean():
    x = X.copy()
    x[2] = 0
    mean = mean_of_valid(x)
    np.testing.assert_allclose(mean, np.delete(X, 2, axis=0).mean(axis=0), rtol=1e-6)
    unit = normalize(x, mean)
    assert not unit[2].any()
    np.testing.assert_allclose(np.linalg.norm(np.delete(unit, 2, axis=0), axis=1), 1, rtol=1e-6)


def test_a_row_equal_to_the_mean_has_no_direction():
    x = np.array([[1, 0], [3, 0], [2, 0]], dtype=np.float32)
    np.testing.assert_array_equal(normalize(x, mean_of_valid(x)), [[-1, 0], [1, 0], [0, 0]])


def test_the_mean_of_nothing_is_zero():
    assert not mean_of_valid(np.zeros((3, 4))).any()
