"""Rotary position embeddings whose frequencies depend on the longest row of a batch.

LongRoPE (Phi-3) has two sets of frequencies and takes the second for a batch with a row longer
than `original_max_position_embeddings`; dynamic NTK scales with the longest row beyond it. A row's
numbers are its own only in batches of one regime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from g2is_ray.errors import SettingError


@dataclass(frozen=True)
class Regimes:
    """Which rows may be in one batch."""

    switches: tuple[int, ...] = ()  # tokens up to which LongRoPE takes its short frequencies
    scaled_beyond: tuple[int, ...] = ()  # tokens up to which dynamic NTK does not scale

    def of(self, tokens: int) -> tuple[int, ...]:
        """What rows of one batch have to have in common, of a row of so many tokens."""
        return (
            *(int(tokens > limit) for limit in self.switches),
            *(tokens if tokens > limit else 0 for limit in self.scaled_beyond),
        )

    def __bool__(self) -> bool:
        return bool(self.switches or self.scaled_beyond)


def require_one_regime(lengths: Sequence[int], found: Regimes) -> None:
    """Refuse rows that are to be trained on as one batch, but whose frequencies differ.

    Raises:
        SettingError: names the limit.
    """
    if len({found.of(length) for length in lengths}) > 1:
        limit = min((*found.switches, *found.scaled_beyond))
        raise SettingError(
            f"rows of {min(lengths)} to {max(lengths)} tokens share a batch, and the model scales "
            f"rotary embeddings by the longest of a batch beyond {limit} tokens: set max_tokens to "
            f"{limit}, or tune_batch_size to a divisor of the rows"
        )


def regimes(model: torch.nn.Module) -> Regimes:
    """The regimes of a model, whose rotary embeddings forget earlier batches from now on.

    Dynamic NTK keeps the frequencies of the longest row so far; a hook restores the original ones
    before each forward pass.
    """
    switches: set[int] = set()
    scaled_beyond: set[int] = set()
    for module in model.modules():
        for kind, prefix, limit in _scalings(module):
            if kind == "longrope":
                switches.add(limit)
            else:
                scaled_beyond.add(limit)
                _forget_earlier_batches(module, prefix)
    return Regimes(tuple(sorted(switches)), tuple(sorted(scaled_beyond)))


def _scalings(module: Any) -> list[tuple[str, str, int]]:
    """Kind, prefix of attributes, and limit in tokens of each scaling that depends on the batch."""
    kinds = getattr(module, "rope_type", None)
    parameters = getattr(getattr(module, "config", None), "rope_parameters", None)
    if not kinds or not parameters or not hasattr(module, "original_max_seq_len"):
        return []
    by_layer_type = kinds if isinstance(kinds, dict) else {"": kinds}
    found = []
    for layer_type, kind in by_layer_type.items():
        own = parameters[layer_type] if layer_type else parameters
        prefix = f"{layer_type}_" if layer_type else ""
        if kind == "longrope":
            found.append((kind, prefix, int(own["original_max_position_embeddings"])))
        elif "dynamic" in str(kind):
            found.append((kind, prefix, int(module.original_max_seq_len)))
    return found


def _forget_earlier_batches(module: Any, prefix: str) -> None:
    mark = f"_{prefix}forgets"
    if getattr(module, mark, False):
        return
    setattr(module, mark, True)

    def restore(module: Any, *_: Any) -> None:
        original = getattr(module, f"{prefix}original_inv_freq")
        current = getattr(module, f"{prefix}inv_freq")
        module.register_buffer(
            f"{prefix}inv_freq", original.to(current.device, copy=True), persistent=False
        )
        setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)

    module.register_forward_pre_hook(restore)
