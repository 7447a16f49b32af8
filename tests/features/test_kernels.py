"""The Triton kernel equals PyTorch's operations, on a GPU or in Triton's interpreter."""

import os

import pytest
import torch

from g2is_ray.features.gradients import adjust_gradient, prepare_moments
from g2is_ray.features.projection import SparseProjection
from g2is_ray.models.loading import BETAS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
pytest.importorskip("triton", reason="triton comes with torch for CUDA; `pip install triton`")


@pytest.mark.parametrize("shape", [(3, 5), (8, 576), (64, 40)])
def test_the_kernel_equals_adjusting_and_then_projecting(shape):
    from g2is_ray.features.kernels import adjust_and_project

    generator = torch.Generator().manual_seed(0)
    g = torch.randn(4, *shape, generator=generator).to(DEVICE)
    m = torch.randn(shape, generator=generator)
    v = torch.rand(shape, generator=generator)
    moments = prepare_moments({"w": (m, v)}, DEVICE)["w"]
    projection = SparseProjection(97, seed=0)
    wanted, found = (torch.ones(4, 97, device=DEVICE) for _ in range(2))
    projection.add(wanted, "w", adjust_gradient(g, moments))
    table = projection.table("w", g[0].numel(), DEVICE)
    adjust_and_project(found, g, moments, table, BETAS)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
