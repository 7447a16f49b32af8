"""Computing the gradients of a workspace's examples, part by part."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from g2is_ray import checkpoints, models
from g2is_ray.adapted import gradient_linears
from g2is_ray.arrays import normalize
from g2is_ray.chat import ChatEncoder, Encoded
from g2is_ray.config import ExecutionSettings, GradientSettings, ModelSettings, SeedSettings
from g2is_ray.errors import InputError, SettingError
from g2is_ray.examples import ExampleSet
from g2is_ray.features import feature_files
from g2is_ray.gradients import GradientComputer, GradientRows
from g2is_ray.projection import Projection, make_projection
from g2is_ray.workspace import Workspace, part_name

MAX_INVALID = 0.01  # share of examples without a usable gradient that is put up with
_MAX_PART_BYTES = 2**33  # of projected gradients in memory, float32


@dataclass(frozen=True, kw_only=True)
class GradientPart:
    """One part of an example set, and the stage that its gradients belong to."""

    examples: str
    stage: str
    part: int
    adjust: bool  # momentum-adjusted gradients Γ (pool), or plain ones (targets)

    def __str__(self) -> str:
        return f"{self.stage}/{part_name(self.part)}"


class GradientWriter:
    """Computes and writes gradients with one model in memory.

    With one checkpoint of the warm-up, rows are its gradients. With several, rows are
    Σ sqrt(w) · unit(gradients at the checkpoint), each projected by itself, with w its share
    of the learning rates: dot products of rows are then LESS's, the checkpoints' cosines
    weighted by learning rate (arXiv 2402.04333).
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
    ) -> None:
        self._workspace = workspace
        self._momentum = gradients.momentum
        self._computing = threading.Lock()
        tokenizer = models.load_tokenizer(model)
        self._encoder = ChatEncoder(tokenizer, max_tokens=max_tokens)
        self._model = checkpoints.load_model(workspace, model, execution.attention)
        self._weights = checkpoints.weights(workspace)
        self._held = [checkpoints.read(workspace, i + 1) for i in range(len(self._weights))]
        self._computer = GradientComputer(
            self._model,
            self._projection(gradients, seed),
            self._put(self._held[-1]),
            pad_id=tokenizer.pad_token_id or 0,
            token_budget=(
                "auto" if execution.token_budget == "auto" else models.token_budget(execution)
            ),
            lora_layers=gradients.lora_layers,
            checkpointing=execution.gradient_checkpointing,
            compiled=execution.compile,
        )

    def _projection(self, settings: GradientSettings, seed: SeedSettings) -> Projection:
        sizes = {
            prefix + name: module.weight.numel()
            for prefix in map(self._prefix, range(len(self._weights)))
            for name, module in gradient_linears(self._model, settings.lora_layers).items()
        }
        return make_projection(settings.projection, settings.projection_dim, seed.seed, sizes)

    def _put(self, held: checkpoints.Checkpoint) -> models.Moments:
        """Give the model a checkpoint's adapter; returns the moments to adjust with."""
        moments = checkpoints.put(self._model, held)
        if self._momentum:
            return moments
        return {name: (torch.zeros_like(m), v) for name, (m, v) in moments.items()}

    def _prefix(self, number: int) -> str:
        """What tells checkpoints' parameters apart, so that each is projected by itself."""
        return f"checkpoint-{number + 1}/" if len(self._weights) > 1 else ""

    def write(self, one: GradientPart) -> dict[str, Any]:
        """Write the gradients of one part; returns its receipt.

        May be called by several threads: one computes, the others read and write meanwhile.

        Raises:
            SettingError: unprojected gradients of the part are more than memory should hold.
            InputError: more examples have no usable gradient than is put up with in the whole
                set; the part is written all the same.
        """
        rows, encoded = self._read(one)
        self._require_room(len(rows))
        with self._computing:
            began = time.monotonic()
            result = self._compute(encoded, adjust=one.adjust)
            seconds = time.monotonic() - began
        invalid = [
            {"id": rows[i]["id"], "reason": why} for i, why in sorted(result.invalid.items())
        ]
        facts = {
            "rows": len(rows),
            "tokens": sum(len(example.input_ids) for example in encoded),
            "invalid": invalid,
            "seconds": round(seconds, 3),
            "host": socket.gethostname(),
            "device": self._model.device.type,
        }
        files = feature_files(one.part, result.projected)
        receipt = self._workspace.commit_once(one.stage, part_name(one.part), files, facts)
        refuse_invalid(one.stage, invalid, ExampleSet(self._workspace, one.examples).rows)
        return receipt

    def _read(self, one: GradientPart) -> tuple[list[dict[str, Any]], list[Encoded]]:
        rows = ExampleSet(self._workspace, one.examples).read(one.part, ["id", "messages"])
        return rows, [self._encoder.encode(row["messages"]) for row in rows]

    def _require_room(self, rows: int) -> None:
        row_bytes = 4 * self._computer.dimensions
        if rows * row_bytes > _MAX_PART_BYTES:
            raise SettingError(
                f"gradients of {self._computer.dimensions} dimensions take "
                f"{rows * row_bytes / 1e9:.0f} GB for a part of {rows} rows: set part_rows to at "
                f"most {max(1, _MAX_PART_BYTES // row_bytes)}, or projection to sparse"
            )

    def _compute(self, encoded: Sequence[Encoded], *, adjust: bool) -> GradientRows:
        if len(self._held) == 1:
            return self._computer.compute(encoded, adjust=adjust)
        total = np.zeros((len(encoded), self._computer.dimensions), dtype=np.float32)
        invalid: dict[int, str] = {}
        for number, (weight, held) in enumerate(zip(self._weights, self._held, strict=True)):
            self._computer.use(self._put(held), self._prefix(number))
            result = self._computer.compute(encoded, adjust=adjust)
            total += np.float32(np.sqrt(weight)) * normalize(result.projected)
            invalid |= result.invalid
        total[list(invalid)] = 0
        return GradientRows(projected=total, losses=result.losses, invalid=invalid)


def refuse_invalid(stage: str, invalid: Sequence[Mapping[str, str]], rows: int) -> None:
    """Refuse to go on if more than 1 % of the `rows` of a stage are known to be invalid.

    Raises:
        InputError: they are; says how many, and names the first.
    """
    if len(invalid) > MAX_INVALID * rows:
        raise InputError(
            f"{stage}: {len(invalid)} of {rows} examples have no usable gradient, more than "
            f"{MAX_INVALID:.0%}; the first is {invalid[0]['id']}: {invalid[0]['reason']}"
        )
