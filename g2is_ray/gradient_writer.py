"""Computing the gradients of a workspace's examples, part by part."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any

from g2is_ray import checkpoints, models
from g2is_ray.chat import ChatEncoder
from g2is_ray.config import ExecutionSettings, GradientSettings, ModelSettings, SeedSettings
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
        self._token_budget = models.token_budget(execution)
        tokenizer = models.load_tokenizer(model)
        self._encoder = ChatEncoder(tokenizer, max_tokens=max_tokens)
        peft_model = checkpoints.load_model(workspace, model)
        last = len(checkpoints.weights(workspace))
        moments = checkpoints.load_weights(workspace, peft_model, last)
        self._computer = GradientComputer(
            peft_model,
            SparseProjection(gradients.projection_dim, seed.seed).add,
            gradients.projection_dim,
            moments,
            pad_id=tokenizer.pad_token_id or 0,
        )

    def write(self, one: GradientPart) -> dict[str, Any]:
        """Write the gradients of one part; returns its receipt."""
        began = time.monotonic()
        rows = ExampleSet(self._workspace, one.examples).read(one.part, ["id", "messages"])
        encoded = [self._encoder.encode(row["messages"]) for row in rows]
        result = self._computer.compute(encoded, self._token_budget, adjust=one.adjust)
        facts = {
            "rows": len(rows),
            "tokens": sum(len(example.input_ids) for example in encoded),
            "invalid": [
                {"id": rows[i]["id"], "reason": why} for i, why in sorted(result.invalid.items())
            ],
            "seconds": round(time.monotonic() - began, 3),
            "host": socket.gethostname(),
        }
        files = gradient_files(one.part, result.projected)
        return self._workspace.commit(one.stage, part_name(one.part), files, facts)
