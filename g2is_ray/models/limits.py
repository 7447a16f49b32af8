"""How many positions and tokens a model knows, from its modules without their weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from g2is_ray.errors import SettingError
from g2is_ray.models.decoder import language_model_name

_POSITIONS = re.compile(r"(^|\.)(wpe|\w*pos\w*)$", re.IGNORECASE)
_CONFIGURED = ("max_position_embeddings", "max_target_positions", "n_positions", "max_seq_len")


@dataclass(frozen=True)
class Limits:
    """What a row of a model must keep to."""

    vocabulary: int  # token ids are below this
    positions: int | None  # tokens of a row, where positions are a table; None: any number

    def check(self, max_tokens: int, model: str) -> None:
        """Refuse rows that may be longer than the model has positions for.

        Raises:
            SettingError: names both numbers.
        """
        if self.positions is not None and max_tokens > self.positions:
            raise SettingError(
                f"max_tokens {max_tokens} is more than the {self.positions} positions that model "
                f"{model} has: set --max-tokens {self.positions} or lower"
            )


def limits_of(model: PreTrainedModel) -> Limits:
    """The limits of a model, with its weights or on the meta device."""
    text: Any = model.get_submodule(language_model_name(model))
    embedding: Any = model.get_input_embeddings()
    vocabulary = getattr(embedding, "num_embeddings", None) or text.config.vocab_size
    tables = [
        _rows(module)
        for name, module in text.named_modules()
        if isinstance(module, torch.nn.Embedding)
        and module is not embedding
        and _POSITIONS.search(name)
    ]
    tables += _configured_tables(text)
    if hasattr(text, "build_mpt_alibi_tensor"):  # MPT's, which has a column for each position
        tables.append(text.config.max_seq_len)
    return Limits(vocabulary=vocabulary, positions=min(tables, default=None))


def _rows(table: Any) -> int:
    """Positions in a learned table, some of which begin after an offset or the padding's own."""
    before = int(getattr(table, "offset", 0) or 0)
    if not before and table.padding_idx is not None:
        before = table.padding_idx + 1
    return table.num_embeddings - before


def _configured_tables(text: torch.nn.Module) -> list[int]:
    """Positions of tables that are computed, not learned: tensors with a row for each position."""
    config: Any = getattr(text, "config", None)
    configured = {getattr(config, name, None) for name in _CONFIGURED} - {None}
    found = []
    for module in text.modules():
        tensors = [*module._buffers.values(), *vars(module).values()]
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.dim() >= 2:
                found += [size for size in tensor.shape[-2:] if size in configured]
    return found
