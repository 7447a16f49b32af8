"""How close gradients in bfloat16, or of quantized base weights, are to float32's.

    python benchmarks/precision.py --model examples/tiny-lm --pool examples/data/pool.jsonl

Unprojected gradients of the same rows; plain ones, g, and momentum-adjusted ones, Γ, with
the float32 rows' mean and mean square in place of AdamW's moments m and v.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from workload import pool_rows, put_adapter

from g2is_ray import models
from g2is_ray.chat import Encoded
from g2is_ray.config import LoraSettings, ModelSettings
from g2is_ray.gradients import GradientComputer
from g2is_ray.models import Moments
from g2is_ray.projection import Unprojected

KINDS = {
    "bfloat16": {"dtype": "bfloat16"},
    "8-bit base": {"quantization": "8bit"},
    "4-bit base": {"quantization": "4bit"},
}


def adapted(settings: ModelSettings, rank: int) -> Any:
    base = models.load_base(settings, models.default_device())
    return put_adapter(base, LoraSettings(lora_r=rank))


def moments_of(plain: np.ndarray, whole: Unprojected, model: Any) -> Moments:
    """Mean and mean square of the rows [n, p], by parameter."""
    m, v = (torch.from_numpy(row) for row in (plain.mean(axis=0), np.square(plain).mean(axis=0)))
    return {
        name: (m[whole.slices[name]].view(p.shape), v[whole.slices[name]].view(p.shape))
        for name, p in models.lora_parameters(model).items()
    }


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def both(one: GradientComputer, rows: Sequence[Encoded]) -> dict[str, np.ndarray]:
    return {
        "g": one.compute(rows, adjust=False).projected,
        "Γ": one.compute(rows, adjust=True).projected,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--pool", required=True)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--lora-r", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    given = parser.parse_args()

    settings = ModelSettings(model=given.model, dtype="float32")
    rows = pool_rows(settings, given.pool, given.rows, given.max_tokens)
    model = adapted(settings, given.lora_r)
    whole = Unprojected({name: p.numel() for name, p in models.lora_parameters(model).items()})
    exact = GradientComputer(model, whole, None, pad_id=0)
    plain = exact.compute(rows, adjust=False).projected
    moments = moments_of(plain, whole, model)
    exact.use(moments)
    wanted = {"g": plain, "Γ": exact.compute(rows, adjust=True).projected}
    print(f"{len(rows)} rows of {plain.shape[1]:,} numbers")
    print("| against float32 | gradients | cosine, least | median | rows at 0.995 or more |")
    print("| --- | --- | --- | --- | --- |")
    for kind in given.kinds:
        model = adapted(ModelSettings(model=given.model, **KINDS[kind]), given.lora_r)
        other = GradientComputer(model, whole, moments, pad_id=0)
        for label, found in both(other, rows).items():
            cosine = cosines(wanted[label], found)
            print(
                f"| {kind} | {label} | {cosine.min():.4f} | {np.median(cosine):.4f} "
                f"| {(cosine >= 0.995).mean():.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
