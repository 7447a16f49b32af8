"""A Triton kernel that adjusts gradients and projects them sparsely in one pass.

Without it, `gradients.adjust_gradient` and then `SparseProjection.add` write and read each
gradient several times. Import this module only where triton is installed; torch for CUDA brings it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024  # coordinates per Triton program


@triton.jit  # type: ignore[untyped-decorator]
def _adjust_and_project(  # type: ignore[no-untyped-def]
    out,
    gradient,
    momentum,
    variance,
    buckets,
    signs,
    size,
    dimensions,
    keep,
    keep_square,
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    g = tl.load(gradient + row * size + at, mask=inside, other=0.0)
    m = tl.load(momentum + at, mask=inside, other=0.0)
    v = tl.load(variance + at, mask=inside, other=1.0)
    sign = tl.load(signs + at, mask=inside, other=0).to(tl.float32)
    bucket = tl.load(buckets + at, mask=inside, other=0)
    adjusted = (m + keep * g) * tl.rsqrt(v + keep_square * g * g)
    tl.atomic_add(out + row * dimensions + bucket, adjusted * sign, mask=inside)


def adjust_and_project(
    out_bd: torch.Tensor,
    gradient_boi: torch.Tensor,
    moments: tuple[torch.Tensor, torch.Tensor],
    table: tuple[torch.Tensor, torch.Tensor],
    betas: tuple[float, float],
) -> None:
    """Add the sparse projection of the adjusted gradients to `out_bd`.

    The result is that of `adjust_gradient` and then `SparseProjection.add`, up to rounding.

    Args:
        out_bd: float32 [b, d], contiguous; changed in place.
        gradient_boi: float32 [b, o, i], contiguous.
        moments: the parameter's moments from `prepare_moments`, float32 [o, i].
        table: the parameter's `SparseProjection.table`.
        betas: AdamW's betas.
    """
    size = gradient_boi[0].numel()
    grid = triton.cdiv(size, _BLOCK), len(gradient_boi)
    _adjust_and_project[grid](
        out_bd,
        gradient_boi,
        *(moment.contiguous() for moment in moments),
        *table,
        size,
        out_bd.shape[1],
        1 - betas[0],
        1 - betas[1],
        BLOCK=_BLOCK,
    )
