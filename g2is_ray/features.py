"""Gradients on disk: unit rows in float16, their norms, and the sum of each part.

From these `normalize(norm * row - mean)` can be formed when reading, so one pass over the
pool serves both the published and the centered method.
"""

from __future__ import annotations

import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors

from g2is_ray import models
from g2is_ray.arrays import normalize
from g2is_ray.chat import ChatEncoder
from g2is_ray.config import ExecutionSettings, GradientSettings, ModelSettings, SeedSettings
from g2is_ray.examples import ExampleSet
from g2is_ray.gradients import GradientComputer
from g2is_ray.projection import SparseProjection
from g2is_ray.workspace import Workspace, array_bytes, part_name

MAX_INVALID = 0.01  # share of examples without a usable gradient that is put up with


class GradientWriter:
    """Computes and writes gradients, part by part, with one model in memory.

    Args:
        adjust: momentum-adjusted gradients Γ (pool), or plain ones (targets).
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        model: ModelSettings,
        gradients: GradientSettings,
        seed: SeedSettings,
        execution: ExecutionSettings,
        max_tokens: int,
        adjust: bool,
    ) -> None:
        self._workspace = workspace
        self._execution = execution
        self._dimensions = gradients.projection_dim
        tokenizer = models.load_tokenizer(model)
        self._encoder = ChatEncoder(tokenizer, max_tokens=max_tokens)
        peft_model, moments = load_warm_model(workspace, model)
        self._computer = GradientComputer(
            peft_model,
            SparseProjection(self._dimensions, seed.seed).add,
            self._dimensions,
            moments if adjust else None,
            pad_id=tokenizer.pad_token_id or 0,
        )

    def write(self, examples_folder: str, stage: str, part: int) -> dict[str, Any]:
        """Write the gradients of one part of an example set; returns its receipt."""
        began = time.monotonic()
        rows = ExampleSet(self._workspace, examples_folder).read(part, ["id", "messages"])
        encoded = [self._encoder.encode(row["messages"]) for row in rows]
        result = self._computer.compute(encoded, self._execution.batch_tokens)
        norms = np.linalg.norm(result.projected, axis=1)
        unit = normalize(result.projected).astype(np.float16)
        total = norms.astype(np.float64) @ unit.astype(np.float64)
        name = part_name(part)
        files = {
            f"{name}.npy": array_bytes(unit),
            f"{name}.norms.npy": array_bytes(norms),
            f"{name}.sum.npy": array_bytes(total),
        }
        facts = {
            "rows": len(rows),
            "tokens": sum(len(one.input_ids) for one in encoded),
            "invalid": [
                {"id": rows[i]["id"], "reason": why} for i, why in sorted(result.invalid.items())
            ],
            "seconds": round(time.monotonic() - began, 3),
            "host": socket.gethostname(),
        }
        return self._workspace.commit(stage, name, files, facts)


def load_warm_model(workspace: Workspace, model: ModelSettings) -> tuple[Any, models.Moments]:
    """The model with the warm-up's adapter, and AdamW's moments after it."""
    base = models.load_base(model, models.default_device())
    with tempfile.TemporaryDirectory(prefix="g2is-adapter-") as scratch:
        folder = workspace.download("warmup/adapter", Path(scratch))
        peft_model = models.load_adapter(base, folder)
    flat = load_tensors(workspace.read_bytes("warmup/moments.safetensors"))
    return peft_model, models.moments_from_tensors(flat, peft_model)


class GradientSet:
    """Reads the gradients of a finished stage as unit rows, centered or not."""

    def __init__(self, workspace: Workspace, stage: str, *, center: bool = False) -> None:
        self._workspace = workspace
        self.stage = stage
        receipt = workspace.require(stage, "gradients")
        self.rows: int = receipt["rows"]
        self.parts: int = receipt["parts"]
        self.invalid: int = receipt["invalid"]
        self._mean = self._pool_mean() if center else None

    def _array(self, part: int, kind: str = "") -> NDArray[Any]:
        return self._workspace.read_array(f"{self.stage}/{part_name(part)}{kind}.npy")

    def _pool_mean(self) -> NDArray[np.float64]:
        total = sum(self._array(part, ".sum") for part in range(self.parts))
        return np.asarray(total / max(1, self.rows - self.invalid))

    def read(self, part: int) -> NDArray[np.float32]:
        """Unit rows [rows, d] of a part; zero where the gradient is invalid."""
        unit = self._array(part).astype(np.float32)
        if self._mean is None:
            return normalize(unit)
        return normalize(unit * self._array(part, ".norms")[:, None], self._mean)

    def read_all(self) -> NDArray[np.float32]:
        """Unit rows [n, d] of every part, in order."""
        return np.concatenate([self.read(part) for part in range(self.parts)])
