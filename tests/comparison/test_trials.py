"""A trial spreads its rows evenly over the steps of the training."""

import numpy as np
import pytest

from g2is_ray.errors import SettingError
from g2is_ray.training.tuning import spread_evenly


@pytest.mark.parametrize("most", [1, 3, 4, 50])
@pytest.mark.parametrize(("rows", "steps"), [(7, 7), (10, 3), (36, 7), (100, 7), (101, 1)])
def test_rows_are_spread_evenly_over_the_steps(rows, steps, most):
    lengths = np.random.default_rng(0).integers(1, 500, rows)
    groups = spread_evenly(lengths, steps, most)
    order = np.concatenate(groups)
    assert sorted(order) == list(range(rows))
    assert (np.diff(lengths[order]) >= 0).all()  # so that the rows of a group have similar lengths
    assert len(groups) % steps == 0
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 0
    assert max(sizes) <= most + 1


def test_fewer_rows_than_steps_are_refused():
    with pytest.raises(SettingError, match=r"^6 rows cannot be spread over 7 optimizer steps"):
        spread_evenly([9] * 6, 7, 4)
