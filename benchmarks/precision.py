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

from g2is_ray import checkpoints, models
from g2is_ray.adapted import gradient_linears
from g2is_ray.chat import ChatEncoder
from g2is_ray.config import ModelSettings, ReadSettings, build
from g2is_ray.examples import ExampleSet
from g2is_ray.gradients import GradientComputer
from g2is_ray.projection import Unprojected
from g2is_ray.workspace import Workspace

KINDS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8-bit base": {"dtype": "auto", "quantization": "8bit"},
    "4-bit base": {"dtype": "auto", "quantization": "4bit"},
}


def computer(workspace: Workspace, settings: ModelSettings) -> GradientComputer:
    model = checkpoints.load_model(workspace, settings)
    last = len(checkpoints.weights(workspace))
    moments = checkpoints.put(model, checkpoints.read(workspace, last))
    sizes = {name: module.weight.numel() for name, module in gradient_linears(model).items()}
    return GradientComputer(model, Unprojected(sizes), moments, pad_id=0)


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
    recorded = workspace.stages()["pool"]["arguments"]
    settings = build(ModelSettings, recorded)
    encoder = ChatEncoder(
        models.load_tokenizer(settings), max_tokens=build(ReadSettings, recorded).max_tokens
    )
    pool = ExampleSet(workspace, "pool")
    chosen = np.linspace(0, pool.rows - 1, given.rows).astype(int)
    rows = [encoder.encode(one["messages"]) for one in pool.take(chosen.tolist(), ["messages"])]

    wanted: dict[bool, np.ndarray] = {}
    for kind in ["float32", *given.kinds]:
        own = ModelSettings(model=settings.model, **KINDS[kind])
        one = computer(workspace, own)
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
