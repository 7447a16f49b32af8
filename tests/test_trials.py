"""Trials: what they are trained on and measured with, without Ray."""

import numpy as np
import pytest

from g2is_ray.config import LoraSettings, ModelSettings, TrainingPlan
from g2is_ray.errors import SettingError
from g2is_ray.training import spread_evenly


def plan(steps: int, seed: int = 0) -> TrainingPlan:
    return TrainingPlan(
        model=ModelSettings(model="none"),
        lora=LoraSettings(),
        epochs=2,
        learning_rate=1e-3,
        batch_size=16,
        schedule="cosine",
        max_tokens=256,
        seed=seed,
        steps_per_epoch=steps,
    )


@pytest.mark.parametrize("most", [1, 3, 4, 50])
@pytest.mark.parametrize(("rows", "steps"), [(7, 7), (10, 3), (36, 7), (100, 7), (101, 1)])
def test_rows_are_spread_evenly_over_the_steps(rows, steps, most):
    groups = spread_evenly(rows, plan(steps), most)
    assert sorted(np.concatenate(groups)) == list(range(rows))
    assert len(groups) % steps == 0
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 0
    assert max(sizes) <= most + 1


def test_another_seed_groups_rows_otherwise():
    one, other = (np.concatenate(spread_evenly(40, plan(4, seed), 4)) for seed in (0, 1))
    assert one.tolist() != other.tolist()


def test_fewer_rows_than_steps_are_refused():
    with pytest.raises(SettingError, match=r"^6 rows cannot be spread over 7 optimizer steps"):
        spread_evenly(6, plan(7), 4)
