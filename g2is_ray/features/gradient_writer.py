"""Computes and writes the gradients of a workspace's examples, part by part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g2is_ray.chat.encoder import Encoded
from g2is_ray.config import ExecutionSettings, GradientSettings, ModelSettings, SeedSettings
from g2is_ray.errors import SettingError
from g2is_ray.features.gradients import GradientComputer
from g2is_ray.features.projection import Projection, make_projection
from g2is_ray.features.vectors import normalize
from g2is_ray.features.writer import FeaturePart, FeatureRows, FeatureWriter, token_budget
from g2is_ray.models import checkpoints
from g2is_ray.models.lora_modules import gradient_linears
from g2is_ray.workspace.layout import POOL
from g2is_ray.workspace.workspace import Workspace


class GradientWriter(FeatureWriter):
    """Computes and writes gradients; holds one model in memory.

    With one checkpoint of the warm-up, rows are the gradients at that checkpoint. With several,
    rows are Σ sqrt(w) · unit(gradient at the checkpoint), where each checkpoint has its own
    projection and w is its share of the learning rates. Dot products of rows are then those of
    LESS: cosines at the checkpoints, weighted by learning rate (arXiv 2402.04333).

    Args:
        max_part_bytes: largest part of projected gradients, float32, that may be held in memory.
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
        max_part_bytes: int = 2**33,
    ) -> None:
        super().__init__(workspace, model, max_tokens)
        self._max_part_bytes = max_part_bytes
        self._model = checkpoints.load_model(workspace, model, execution.attention)
        self._weights = checkpoints.weights(workspace)
        self._held = [checkpoints.read(workspace, i + 1) for i in range(len(self._weights))]
        self._computer = GradientComputer(
            self._model,
            self._projection(gradients, seed),
            checkpoints.put(self._model, self._held[-1]),
            betas=self._held[-1].betas,
            pad_id=self._pad_id,
            token_budget=token_budget(execution),
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

    def _prefix(self, number: int) -> str:
        """Return the prefix of a checkpoint's parameter names: each has its own projection."""
        return f"checkpoint-{number + 1}/" if len(self._weights) > 1 else ""

    def _require_memory(self, rows: int) -> None:
        row_bytes = 4 * self._computer.dimensions
        if rows * row_bytes > self._max_part_bytes:
            most = max(1, self._max_part_bytes // row_bytes)
            raise SettingError(
                f"part_rows: the gradients of {rows} rows take {rows * row_bytes / 1e9:.0f} GB, at "
                f"{self._computer.dimensions} dimensions; set part_rows to at most {most}, or "
                "projection to sparse"
            )

    def _compute(self, part: FeaturePart, examples: Sequence[Encoded]) -> FeatureRows:
        self._require_memory(len(examples))
        adjust = part.examples == POOL  # the pool's are Γ, a target's are plain
        if len(self._held) == 1:
            result = self._computer.compute(examples, adjust=adjust)
            return result.projected, result.invalid
        total = np.zeros((len(examples), self._computer.dimensions), dtype=np.float32)
        invalid: dict[int, str] = {}
        for number, (weight, held) in enumerate(zip(self._weights, self._held, strict=True)):
            moments = checkpoints.put(self._model, held)
            self._computer.use(moments, self._prefix(number), held.betas)
            result = self._computer.compute(examples, adjust=adjust)
            total += np.float32(np.sqrt(weight)) * normalize(result.projected)
            invalid |= result.invalid
        total[list(invalid)] = 0
        return total, invalid
