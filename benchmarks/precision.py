"""How close gradients in bfloat16, or of quantized base weights, are to float32's.

    python benchmarks/precision.py --workspace runs/first

Takes the workspace's pool, its warmed-up adapter and AdamW's moments after the warm-up.
Plain gradients, g, and momentum-adjusted ones, Γ, unprojected; the same rows each time.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import numpy as np
from workload import warmed_model, workspace_rows

from g2is_ray.features.gradients import GradientComputer
from g2is_ray.features.projection import Unprojected
from g2is_ray.models.lora_modules import gradient_linears
from g2is_ray.workspace.workspace import Workspace

KINDS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8-bit base": {"dtype": "auto", "quantization": "8bit"},
    "4-bit base": {"dtype": "auto", "quantization": "4bit"},
}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workspace", required=True, help="one whose warm-up is done")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS)[1:], default=list(KINDS)[1:])
    given = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

    workspace = Workspace(given.workspace)
    rows = workspace_rows(workspace, given.rows)
    wanted: dict[bool, np.ndarray] = {}
    for kind in ["float32", *given.kinds]:
        model, moments = warmed_model(workspace, **KINDS[kind])
        sizes = {name: module.weight.numel() for name, module in gradient_linears(model).items()}
        one = GradientComputer(model, Unprojected(sizes), moments, pad_id=0)
        if not wanted:
            print(f"{len(rows)} rows of {one.dimensions:,} numbers")
            print(
                "| against float32 | gradients | cosine, least | median | rows at 0.995 or more |"
            )
            print("| --- | --- | --- | --- | --- |")
        for adjust in (False, True):
            found = one.compute(rows, adjust=adjust).projected
            if kind == "float32":
                wanted[adjust] = found
                continue
            cosine = cosines(wanted[adjust], found)
            print(
                f"| {kind} | {'Γ' if adjust else 'g'} | {cosine.min():.4f} "
                f"| {np.median(cosine):.4f} | {(cosine >= 0.995).mean():.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
