"""The sparse sign projection: keyed by seed and name, linear, and true to inner products."""

import numpy as np
import pytest
import torch

from g2is_ray.projection import SparseProjection

SHAPES = {"layers.0.lora_A.weight": (4, 30), "layers.0.lora_B.weight": (25, 4)}
SIZE = sum(a * b for a, b in SHAPES.values())


def gradients(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(count, *shape, generator=generator) for n, shape in SHAPES.items()}


def project(named, dimensions=64, seed=0, order=None):
    projection = SparseProjection(dimensions, seed)
    out = torch.zeros(len(next(iter(named.values()))), dimensions)
    for name in order or named:
        projection.add(out, name, named[name])
    return out


def test_every_coordinate_goes_with_a_sign_to_one_dimension():
    named = {"w": torch.eye(SIZE)}
    out = project(named)
    assert (out != 0).sum(dim=1).eq(1).all()
    assert set(out[out != 0].tolist()) == {-1.0, 1.0}


def test_the_table_is_the_same_everywhere():
    """Gradients written by one release are compared with those of another: never change this."""
    out = project({"w": torch.arange(1.0, 9.0)[None]}, dimensions=5, seed=7)
    assert out.tolist() == [[-8.0, -2.0, 3.0, 4.0, -1.0]]


def test_the_order_of_parameters_does_not_matter():
    named = gradients(3)
    torch.testing.assert_close(project(named, order=list(named)[::-1]), project(named))


def test_batch_mates_do_not_matter():
    named = gradients(5)
    alone = torch.cat([project({n: g[i : i + 1] for n, g in named.items()}) for i in range(5)])
    torch.testing.assert_close(alone, project(named))


def test_the_projection_is_linear():
    a, b = gradients(2, seed=1), gradients(2, seed=2)
    both = {name: 3 * a[name] - b[name] for name in a}
    torch.testing.assert_close(project(both), 3 * project(a) - project(b))


def test_it_adds_to_what_is_there():
    named = gradients(2)
    out = torch.ones(2, 64)
    projection = SparseProjection(64, 0)
    for name, gradient in named.items():
        projection.add(out, name, gradient)
    torch.testing.assert_close(out, project(named) + 1)


@pytest.mark.parametrize("other", [{"seed": 1}, {"name": "layers.1.lora_A.weight"}])
def test_other_seeds_and_names_project_otherwise(other):
    gradient = torch.ones(1, 4, 30)
    first = project({"layers.0.lora_A.weight": gradient})
    second = project(
        {other.get("name", "layers.0.lora_A.weight"): gradient}, seed=other.get("seed", 0)
    )
    assert not torch.equal(first, second)


def test_inner_products_are_kept_on_average():
    """Unbiased, with the variance of a random sign projection: about |a|²|b|²/dimensions."""
    a = gradients(1, seed=3)
    b = {name: a[name] + 0.5 * other for (name, other) in gradients(1, seed=4).items()}
    true = sum(float((a[n] * b[n]).sum()) for n in a)
    lengths = sum(float(a[n].square().sum()) for n in a) * sum(
        float(b[n].square().sum()) for n in b
    )
    found = [float(project(a, 256, seed)[0] @ project(b, 256, seed)[0]) for seed in range(400)]
    spread = (2 * lengths / 256) ** 0.5
    assert abs(np.mean(found) - true) < 4 * spread / 400**0.5
    assert np.std(found) < 1.3 * spread


def test_buckets_and_signs_are_even():
    buckets, signs = SparseProjection(8, 0)._table("w", 20_000, torch.device("cpu"))
    counts = torch.bincount(buckets.long(), minlength=8)
    assert (counts - 2500).abs().max() < 5 * 47  # five standard deviations
    assert abs(int(signs.sum())) < 5 * 142
