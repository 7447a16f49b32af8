"""The Triton kernel does what the plain way does; on a GPU, or by Triton's interpreter."""

import os

import pytest
import torch

from g2is_ray.features.gradients import adjusted, prepared
from g2is_ray.features.projection import SparseProjection
from g2is_ray.models.loading import BETAS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
pytest.importorskip("triton", reason="triton comes with torch for CUDA; `pip install triton`")


@pytest.mark.parametrize("shape", [(3, 5), (8, 576), (64, 40)])
def test_the_kernel_adjusts_and_projects_as_the_plain_way_does(shape):
    from g2is_ray.features.kernels import adjust_and_project

    generator = torch.Generator().manual_seed(0)
    g = torch.randn(4, *shape, generator=generator).to(DEVICE)
    m = torch.randn(shape, generator=generator)
    v = torch.rand(shape, generator=generator)
    moments = prepared({"w": (m, v)}, DEVICE)["w"]
    projection = SparseProjection(97, seed=0)
    wanted, found = (torch.ones(4, 97, device=DEVICE) for _ in range(2))
    projection.add(wanted, "w", adjusted(g, moments))
    table = projection.table("w", g[0].numel(), DEVICE)
    adjust_and_project(found, g, moments, table, BETAS)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
