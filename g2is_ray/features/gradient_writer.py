"""Gradients of a workspace's examples, part by part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g2is_ray.chat.encoder import ChatEncoder, Encoded
from g2is_ray.config import ExecutionSettings, GradientSettings, ModelSettings, SeedSettings
from g2is_ray.errors import SettingError
from g2is_ray.features.arrays import normalize
from g2is_ray.features.gradients import GradientComputer
from g2is_ray.features.projection import Projection, make_projection
from g2is_ray.features.writer import FeaturePart, FeatureRows, FeatureWriter, token_budget
from g2is_ray.models import checkpoints, loading
from g2is_ray.models.lora_modules import gradient_linears
from g2is_ray.workspace.layout import POOL
from g2is_ray.workspace.workspace import Workspace

_MAX_PART_BYTES = 2**33  # of projected gradients in memory, float32


class GradientWriter(FeatureWriter):
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
        tokenizer = loading.load_tokenizer(model)
        encoder = ChatEncoder(tokenizer, max_tokens=max_tokens, template_date=model.template_date)
        super().__init__(workspace, encoder)
        self._model = checkpoints.load_model(workspace, model, execution.attention)
        self._weights = checkpoints.weights(workspace)
        self._held = [checkpoints.read(workspace, i + 1) for i in range(len(self._weights))]
        self._computer = GradientComputer(
            self._model,
            self._projection(gradients, seed),
            checkpoints.put(self._model, self._held[-1]),
            betas=self._held[-1].betas,
            pad_id=tokenizer.pad_token_id or 0,
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
        """What tells checkpoints' parameters apart, so that each is projected by itself."""
        return f"checkpoint-{number + 1}/" if len(self._weights) > 1 else ""

    def _require_room(self, rows: int) -> None:
        row_bytes = 4 * self._computer.dimensions
        if rows * row_bytes > _MAX_PART_BYTES:
            raise SettingError(
                f"gradients of {self._computer.dimensions} dimensions take "
                f"{rows * row_bytes / 1e9:.0f} GB for a part of {rows} rows: set part_rows to at "
                f"most {max(1, _MAX_PART_BYTES // row_bytes)}, or projection to sparse"
            )

    def _compute(self, part: FeaturePart, examples: Sequence[Encoded]) -> FeatureRows:
        self._require_room(len(examples))
        adjust = part.examples == POOL  # Γ; a target's gradients are plain
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
