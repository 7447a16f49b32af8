"""Embeddings of examples by the base model.

Shapes: b examples, t tokens, h hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from g2is_ray.chat.encoder import ChatEncoder, Encoded
from g2is_ray.config import ExecutionSettings, ModelSettings
from g2is_ray.features.writer import FeaturePart, FeatureRows, FeatureWriter, token_budget
from g2is_ray.models import loading, probe
from g2is_ray.models.batches import TokenBudget, by_length, compute_batches, pad
from g2is_ray.models.decoder import find_decoder
from g2is_ray.models.rope import regimes
from g2is_ray.workspace.workspace import Workspace


def weighted_mean(hidden_bth: torch.Tensor, lengths_b: torch.Tensor) -> torch.Tensor:
    """Mean of each example's hidden states, the i-th token's with the weight i, float32 [b, h].

    A causal model's later tokens have seen more of the text. Source: SGPT (arXiv 2202.08904),
    section 3.2.
    """
    place_t = torch.arange(1, hidden_bth.shape[1] + 1, device=hidden_bth.device)
    weights_bt = torch.where(place_t <= lengths_b[:, None], place_t, 0).float()
    weights_bt /= weights_bt.sum(dim=1, keepdim=True)
    return torch.bmm(weights_bt[:, None], hidden_bth.float())[:, 0]


class EmbeddingComputer:
    """Embeddings of examples: weighted means of a causal LM's last hidden states.

    All tokens of the conversation count, as in RDS+ (arXiv 2503.01807). There is no attention
    mask: padding on the right is seen by padding alone, which has no weight.

    Args:
        model: a transformers causal LM in evaluation mode.
        pad_id: token id to pad with; any will do.
        token_budget: longest example x examples of a batch, or `auto` to find one.

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
        """Embeddings [n, h] in the order of the examples.

        Raises:
            SettingError: an example does not fit into memory by itself.
        """
        order = by_length([len(one.input_ids) for one in examples])
        falling = [examples[i] for i in order]
        lengths = torch.tensor([len(one.input_ids) for one in falling], device=self._device)
        batches: list[torch.Tensor] = []  # on the device until all are done

        def compute(start: int, stop: int) -> None:
            ids_bt, _ = pad(falling[start:stop], self._pad_id)
            output = self._decoder(input_ids=ids_bt.to(self._device), use_cache=False)
            batches.append(weighted_mean(output.last_hidden_state, lengths[start:stop]))

        compute_batches(
            lengths.tolist(), self._budget, self._device, compute, regimes=self._regimes
        )
        found = torch.cat(batches).cpu().numpy()
        rows = np.empty_like(found)
        rows[order] = found
        return rows


class EmbeddingWriter(FeatureWriter):
    """Computes and writes embeddings with the base model in memory."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        model: ModelSettings,
        execution: ExecutionSettings,
        max_tokens: int,
    ) -> None:
        tokenizer = loading.load_tokenizer(model)
        encoder = ChatEncoder(tokenizer, max_tokens=max_tokens, template_date=model.template_date)
        super().__init__(workspace, encoder)
        self._computer = EmbeddingComputer(
            loading.load_base(model, loading.default_device(), execution.attention),
            pad_id=tokenizer.pad_token_id or 0,
            token_budget=token_budget(execution),
        )

    def _compute(self, part: FeaturePart, examples: Sequence[Encoded]) -> FeatureRows:
        rows = self._computer.compute(examples)
        lengths = np.linalg.norm(rows, axis=1)
        unusable = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0)).tolist()
        rows[unusable] = 0
        return rows, dict.fromkeys(unusable, "its embedding is zero or not finite")
