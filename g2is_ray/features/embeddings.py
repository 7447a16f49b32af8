"""Embeddings of examples by the base model.

Shapes: b examples, t tokens, h hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from g2is_ray.chat.encoder import Encoded
from g2is_ray.config import ExecutionSettings, ModelSettings
from g2is_ray.features.writer import FeaturePart, FeatureRows, FeatureWriter, token_budget
from g2is_ray.models import loading, probe
from g2is_ray.models.batches import TokenBudget, by_length, compute_batches, pad
from g2is_ray.models.decoder import find_decoder
from g2is_ray.models.rope import regimes
from g2is_ray.workspace.workspace import Workspace


def weighted_mean(hidden_bth: torch.Tensor, lengths_b: torch.Tensor) -> torch.Tensor:
    """Return each example's mean hidden state, float32 [b, h], weighting token i by i.

    In a causal model, later tokens have seen more of the text. Source: SGPT (arXiv 2202.08904),
    section 3.2.

    Args:
        hidden_bth: hidden states [b, t, h], padded on the right.
        lengths_b: number of tokens of each example, int64 [b].
    """
    place_t = torch.arange(1, hidden_bth.shape[1] + 1, device=hidden_bth.device)
    weights_bt = torch.where(place_t <= lengths_b[:, None], place_t, 0).float()
    weights_bt /= weights_bt.sum(dim=1, keepdim=True)
    return torch.bmm(weights_bt[:, None], hidden_bth.float())[:, 0]


class EmbeddingComputer:
    """Embeds examples as weighted means of a causal LM's last hidden states.

    All tokens of the conversation count, as in RDS+ (arXiv 2503.01807). No attention mask is
    needed: with padding on the right, only padding attends to padding, and its weight is zero.

    Args:
        model: a transformers causal LM in evaluation mode.
        pad_id: token id to pad with; any id works.
        token_budget: padded tokens of a batch (longest example x examples), or `auto` to search
            for the largest that fits into memory.

    Raises:
        InputError: the model is not causal, or an example depends on its batch.
    """

    def __init__(self, model: Any, *, pad_id: int, token_budget: int | Literal["auto"]) -> None:
        probe.check_base(model)
        self._decoder: Any = find_decoder(model).decoder  # without the output layer
        self._regimes = regimes(model)
        self._device: torch.device = model.device
        self._pad_id = pad_id
        self._budget = TokenBudget(token_budget)

    @torch.no_grad()
    def compute(self, examples: Sequence[Encoded]) -> NDArray[np.float32]:
        """Return the embeddings, float32 [n, h], in the order of the examples.

        Raises:
            SettingError: a single example does not fit into memory.
        """
        order = by_length([len(one.input_ids) for one in examples])
        longest_first = [examples[i] for i in order]
        lengths = torch.tensor([len(one.input_ids) for one in longest_first], device=self._device)
        batches: list[torch.Tensor] = []  # on the device until every batch is computed

        def compute(start: int, stop: int) -> None:
            ids_bt, _ = pad(longest_first[start:stop], self._pad_id)
            output = self._decoder(input_ids=ids_bt.to(self._device), use_cache=False)
            batches.append(weighted_mean(output.last_hidden_state, lengths[start:stop]))

        compute_batches(
            lengths.tolist(), self._budget, self._device, compute, regimes=self._regimes
        )
        embeddings = torch.cat(batches).cpu().numpy()
        rows = np.empty_like(embeddings)
        rows[order] = embeddings
        return rows


class EmbeddingWriter(FeatureWriter):
    """Computes and writes embeddings; holds the base model in memory."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        model: ModelSettings,
        execution: ExecutionSettings,
        max_tokens: int,
    ) -> None:
        super().__init__(workspace, model, max_tokens)
        self._computer = EmbeddingComputer(
            loading.load_base(model, loading.default_device(), execution.attention),
            pad_id=self._pad_id,
            token_budget=token_budget(execution),
        )

    def _compute(self, part: FeaturePart, examples: Sequence[Encoded]) -> FeatureRows:
        rows = self._computer.compute(examples)
        norms = np.linalg.norm(rows, axis=1)
        unusable = np.flatnonzero(~np.isfinite(norms) | (norms == 0)).tolist()
        rows[unusable] = 0
        return rows, dict.fromkeys(unusable, "its embedding is zero or not finite")
