"""Computing the gradients of a workspace's examples, part by part."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors

from g2is_ray import models
from g2is_ray.chat import ChatEncoder, Encoded
from g2is_ray.config import ExecutionSettings, GradientSettings, ModelSettings, SeedSettings
from g2is_ray.errors import InputError
from g2is_ray.examples import ExampleSet
from g2is_ray.features import gradient_files
from g2is_ray.gradients import GradientComputer
from g2is_ray.projection import SparseProjection
from g2is_ray.workspace import Workspace, part_name

MAX_INVALID = 0.01  # share of examples without a usable gradient that is put up with


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
    """Computes and writes gradients with one model in memory."""

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
        tokenizer = models.load_tokenizer(model)
        self._computing = threading.Lock()
        self._encoder = ChatEncoder(tokenizer, max_tokens=max_tokens)
        peft_model, moments = load_warm_model(workspace, model, execution.attention)
        self._computer = GradientComputer(
            peft_model,
            SparseProjection(gradients.projection_dim, seed.seed),
            moments,
            pad_id=tokenizer.pad_token_id or 0,
            token_budget=(
                "auto" if execution.token_budget == "auto" else models.token_budget(execution)
            ),
            lora_layers=gradients.lora_layers,
            checkpointing=execution.gradient_checkpointing,
            compiled=execution.compile,
        )

    def write(self, one: GradientPart) -> dict[str, Any]:
        """Write the gradients of one part; returns its receipt.

        May be called by several threads: one computes, the others read and write meanwhile.

        Raises:
            InputError: more examples have no usable gradient than is put up with in the whole
                set; the part is written all the same.
        """
        rows, encoded = self._read(one)
        with self._computing:
            began = time.monotonic()
            result = self._computer.compute(encoded, adjust=one.adjust)
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
        }
        files = gradient_files(one.part, result.projected)
        receipt = self._workspace.commit(one.stage, part_name(one.part), files, facts)
        refuse_invalid(one.stage, invalid, ExampleSet(self._workspace, one.examples).rows)
        return receipt

    def _read(self, one: GradientPart) -> tuple[list[dict[str, Any]], list[Encoded]]:
        rows = ExampleSet(self._workspace, one.examples).read(one.part, ["id", "messages"])
        return rows, [self._encoder.encode(row["messages"]) for row in rows]


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


def load_warm_model(
    workspace: Workspace, model: ModelSettings, attention: str
) -> tuple[Any, models.Moments]:
    """The model with the warm-up's adapter, and AdamW's moments after it."""
    base = models.load_base(model, models.default_device(), attention)
    with tempfile.TemporaryDirectory(prefix="g2is-adapter-") as scratch:
        folder = workspace.download("warmup/adapter", Path(scratch))
        peft_model = models.load_adapter(base, folder)
    flat = load_tensors(workspace.read_bytes("warmup/moments.safetensors"))
    return peft_model, models.moments_from_tensors(flat, peft_model)
