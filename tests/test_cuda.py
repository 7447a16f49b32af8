"""Gradients on a GPU are those of the CPU; every test here is skipped where there is none."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, adapter, examples

from g2is_ray.features.gradients import GradientComputer
from g2is_ray.features.projection import SparseProjection
from g2is_ray.models.loading import lora_parameters

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def rows_on(device, name="llama, grouped queries, tied", dtype=torch.float32, **options):
    model = adapter(name).to(device, dtype)
    moments = {
        n: (torch.full(p.shape, 1e-2), torch.full(p.shape, 1e-4))
        for n, p in lora_parameters(model).items()
    }
    one = GradientComputer(
        model, SparseProjection(512, seed=0), moments, pad_id=0, token_budget=80, **options
    )
    return one.compute(examples(), adjust=True).projected


def least_cosine(a, b):
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return ((a * b).sum(axis=1) / norms).min()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_are_those_of_the_cpu(name):
    found, wanted = rows_on("cuda", name), rows_on("cpu", name)
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("options", [{"compiled": True}, {"checkpointing": True}])
def test_options_that_save_time_or_memory_do_not_matter(options):
    found, wanted = rows_on("cuda", **options), rows_on("cuda")
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_keeps_directions(name):
    assert least_cosine(rows_on("cuda", name, torch.bfloat16), rows_on("cuda", name)) > 0.98
