"""Projections depend on seed and name, are linear, and keep inner products."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.config import LoraSettings, ModelSettings
from g2is_ray.data.reading import read_examples
from g2is_ray.features.gradients import GradientComputer
from g2is_ray.features.projection import (
    RademacherProjection,
    SparseProjection,
    Unprojected,
    make_projection,
    splitmix64,
)
from g2is_ray.models import loading

CPU = torch.device("cpu")
SHAPES = {"layers.0.lora_B.weight": (25, 4), "layers.0.lora_A.weight": (4, 30)}
SIZES = {name: a * b for name, (a, b) in SHAPES.items()}
SIZE = sum(SIZES.values())

random_kinds = pytest.mark.parametrize("kind", ["sparse", "rademacher"])
every_kind = pytest.mark.parametrize("kind", ["sparse", "rademacher", "none"])


def gradients(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(count, *shape, generator=generator) for n, shape in SHAPES.items()}


def add_all(projection, named, order=None):
    first = next(iter(named.values()))
    out = torch.zeros(len(first), projection.dimensions, device=first.device)
    for name in order or named:
        projection.add(out, name, named[name])
    return out


def project(kind, named, dimensions=70, seed=0, order=None):
    sizes = {name: gradient[0].numel() for name, gradient in named.items()}
    return add_all(make_projection(kind, dimensions, seed, sizes), named, order)


@every_kind
def test_the_order_of_parameters_does_not_matter(kind):
    named = gradients(3)
    torch.testing.assert_close(project(kind, named, order=list(named)[::-1]), project(kind, named))
    torch.testing.assert_close(project(kind, dict(reversed(named.items()))), project(kind, named))


@every_kind
def test_batch_mates_do_not_matter(kind):
    named = gradients(5)
    alone = [project(kind, {n: g[i : i + 1] for n, g in named.items()}) for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), project(kind, named))


@every_kind
def test_the_projection_is_linear(kind):
    a, b = gradients(2, seed=1), gradients(2, seed=2)
    both = {name: 3 * a[name] - b[name] for name in a}
    torch.testing.assert_close(project(kind, both), 3 * project(kind, a) - project(kind, b))


@every_kind
def test_projections_are_added_to_the_output(kind):
    named = gradients(2)
    projection = make_projection(kind, 70, 0, SIZES)
    out = torch.ones(2, projection.dimensions)
    for name, gradient in named.items():
        projection.add(out, name, gradient)
    torch.testing.assert_close(out, project(kind, named) + 1)


@random_kinds
@pytest.mark.parametrize("other", [{"seed": 1}, {"name": "layers.1.lora_A.weight"}])
def test_other_seeds_and_names_give_other_projections(kind, other):
    gradient = torch.ones(1, 4, 30)
    first = project(kind, {"layers.0.lora_A.weight": gradient})
    name = other.get("name", "layers.0.lora_A.weight")
    assert not torch.equal(first, project(kind, {name: gradient}, seed=other.get("seed", 0)))


@random_kinds
def test_inner_products_have_the_mean_and_spread_of_theory(kind):
    a = gradients(1, seed=3)
    b = {name: a[name] + 0.5 * other for name, other in gradients(1, seed=4).items()}
    flat_a, flat_b = (torch.cat([x[n].flatten() for n in SHAPES]).double() for x in (a, b))
    true = float(flat_a @ flat_b)
    variance = flat_a.square().sum() * flat_b.square().sum() + true**2
    variance -= 2 * (flat_a * flat_b).square().sum()
    spread = float(variance / 256) ** 0.5
    found = [
        float(project(kind, a, 256, seed)[0] @ project(kind, b, 256, seed)[0])
        for seed in range(400)
    ]
    assert abs(np.mean(found) - true) < 4 * spread / 400**0.5
    assert 0.85 < np.std(found) / spread < 1.15  # four standard deviations of 400 draws


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_kind
def test_a_gpu_gives_the_same_rows(kind):
    named = gradients(3)
    on_gpu = project(kind, {name: gradient.cuda() for name, gradient in named.items()})
    torch.testing.assert_close(on_gpu.cpu(), project(kind, named))


def test_sparse_adds_every_coordinate_with_a_sign_to_one_dimension():
    out = project("sparse", {"w": torch.eye(SIZE)})
    assert (out != 0).sum(dim=1).eq(1).all()
    assert set(out[out != 0].tolist()) == {-1.0, 1.0}


def test_sparse_signs_are_the_same_everywhere():
    """Gradients of different releases are compared with each other: never change this."""
    out = project("sparse", {"w": torch.arange(1.0, 9.0)[None]}, dimensions=5, seed=7)
    assert out.tolist() == [[-8.0, -2.0, 3.0, 4.0, -1.0]]


def test_sparse_buckets_and_signs_are_even():
    buckets, signs = SparseProjection(8, 0).table("w", 20_000, CPU)
    counts = torch.bincount(buckets.long(), minlength=8)
    assert (counts - 2500).abs().max() < 5 * 47  # five standard deviations
    assert abs(int(signs.sum())) < 5 * 142


def test_rademacher_signs_are_the_same_everywhere():
    """Gradients of different releases are compared with each other: never change this."""
    out = project("rademacher", {"w": torch.arange(1.0, 9.0)[None]}, dimensions=130, seed=7)
    last = [-16.0, 0.0, -28.0, 18.0, -18.0]
    torch.testing.assert_close(out[0, -5:] * 130**0.5, torch.tensor(last))


def test_rademacher_adds_every_coordinate_with_a_sign_to_every_dimension():
    out = project("rademacher", {"w": torch.eye(SIZE)}, dimensions=100)
    torch.testing.assert_close(out.abs(), torch.full((SIZE, 100), 0.1))


def test_words_equal_those_of_the_published_generator():
    words = [word % 2**64 for word in splitmix64(1234567, 0, 5, CPU).tolist()]
    assert words == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(2**64 - 1, 3, 9, CPU).equal(splitmix64(2**64 - 1, 0, 9, CPU)[3:])


def test_rademacher_signs_are_even_and_uncorrelated():
    coordinates, dimensions, deviations = 4096, 192, 5.5
    signs = project("rademacher", {"w": torch.eye(coordinates)}, dimensions).sign()
    between_dimensions = signs.T @ signs / coordinates**0.5
    between_dimensions.fill_diagonal_(0)
    assert between_dimensions.abs().max() < deviations
    assert (signs.sum(dim=0) / coordinates**0.5).abs().max() < deviations
    assert (signs.sum(dim=1) / dimensions**0.5).abs().max() < deviations
    for apart in (1, 2, 3, 64):
        neighbors = (signs[apart:] * signs[:-apart]).sum(dim=1) / dimensions**0.5
        assert neighbors.abs().max() < deviations
        assert abs(float(neighbors.square().mean()) - 1) < 0.15


@pytest.mark.parametrize("block_bytes", [1, 10_000, 2**30])
def test_rademacher_does_not_depend_on_the_block_size(block_bytes):
    named = gradients(3)
    found = add_all(RademacherProjection(70, 0, block_bytes=block_bytes), named)
    torch.testing.assert_close(found, project("rademacher", named))


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    largest_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.largest_bytes = max(self.largest_bytes, out.untyped_storage().nbytes())
        return out


def test_rademacher_never_holds_more_than_a_block():
    gradient = torch.ones(1, 20_000)  # 80 MB of signs
    out = torch.zeros(1, 1000)
    with LargestTensor() as seen:
        RademacherProjection(1000, 0, block_bytes=2**20).add(out, "w", gradient)
    assert 2**18 < seen.largest_bytes <= 2**19  # the signs; generating them takes the other half


def test_none_keeps_every_coordinate_in_order_of_names():
    named = gradients(2)
    wanted = torch.cat([named[name].flatten(1) for name in sorted(named)], dim=1)
    assert torch.equal(project("none", named), wanted)


@pytest.fixture(scope="module")
def real_gradients(tiny_model):
    """Unit gradients [n, p] of rows of the bundled pool, and the projection that keeps all p."""
    settings = ModelSettings(model=tiny_model)
    encoder = ChatEncoder(loading.load_tokenizer(settings), max_tokens=1024)
    pool = read_examples([str(Path(tiny_model).parent / "data" / "pool.jsonl")])
    rows = [encoder.encode(next(pool).messages) for _ in range(48)]
    model = loading.add_adapter(loading.load_base(settings, CPU), LoraSettings(lora_r=8), 0).eval()
    parameters = loading.lora_parameters(model)
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter, std=0.02)
    whole = Unprojected({name: parameter.numel() for name, parameter in parameters.items()})
    computer = GradientComputer(model, whole, None, pad_id=0)
    found = torch.from_numpy(computer.compute(rows, adjust=False).projected)
    return torch.nn.functional.normalize(found), whole


@pytest.mark.slow
def test_sparse_spreads_inner_products_of_real_gradients_no_more_than_dense(real_gradients):
    unit, whole = real_gradients
    pairs = tuple(torch.triu_indices(len(unit), len(unit), 1))
    named = {name: unit[:, columns] for name, columns in whole.slices.items()}
    spread = {}
    for kind in ("sparse", "rademacher"):
        errors = []
        for seed in range(4):
            rows = project(kind, named, 8192, seed)
            errors.append((rows @ rows.T - unit @ unit.T)[pairs])
        spread[kind] = float(torch.stack(errors).std())
    assert spread["sparse"] < 1.1 * spread["rademacher"]
