"""Checks by computing that a language model's numbers for a row are the row's own.

Everything else relies on that: rows are padded on the right without an attention mask, several to a
batch, and only supervised tokens reach the output layer.
"""

from __future__ import annotations

from typing import Any

import torch

from g2is_ray.errors import InputError, SettingError, one_line
from g2is_ray.models.decoder import find_decoder, plain_tokens
from g2is_ray.models.loss import SupervisedLoss

_SHORT, _LONG = 5, 8  # tokens of the rows that are tried
_CHECKED = "_g2is_checked"  # attribute of a model that passed


def tolerance(model: Any) -> float:
    """Relative difference that rounding explains, with room to spare."""
    if getattr(model, "is_quantized", False):
        return 0.2
    return 1e-3 if model.dtype == torch.float32 else 0.05


@torch.no_grad()
def check_base(model: Any, name: str = "") -> None:
    """Refuse a model that is not causal, mixes the rows of a batch, or has another loss.

    Costs five forward passes of at most 24 tokens, once for a model in memory: less than a second
    on a GPU, and as long as reading the weights five times on a CPU.

    Args:
        model: a causal LM in evaluation mode.
        name: what messages call it.

    Raises:
        InputError: says which of these, in one sentence.
    """
    if getattr(model, _CHECKED, False):
        return
    what = f"model {name} ({type(model).__name__})" if name else f"the {type(model).__name__}"
    try:
        tokens = plain_tokens(model, _LONG + 1)
        SupervisedLoss(model)
        batched, alone = _hidden_states(model, find_decoder(model).decoder, tokens)
    except SettingError as error:
        raise InputError(f"{what}: {error}") from None
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever a model asks for beside tokens
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise InputError(
            f"{what} does not work on text alone ({reason}); choose a decoder-only language model"
        ) from error
    most = tolerance(model)
    if not all(bool(one.isfinite().all()) for one in (*batched, alone)):
        return  # each row says so of itself
    if _difference(batched[0][:-1], batched[1][:-1]) > most:
        raise InputError(
            f"{what} is not causal: its hidden states depend on later tokens{_cause(model)}; "
            "choose a decoder-only language model"
        )
    if _difference(alone, batched[0]) > most:
        raise InputError(
            f"{what}: a row's hidden states depend on the other rows of its batch, so a row has no "
            "gradient or embedding of its own; choose another model"
        )
    setattr(model, _CHECKED, True)


def _hidden_states(
    model: Any, decoder: Any, tokens: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of two short rows, which differ in their last token, by one forward pass each.

    Returns:
        Those of both in a batch with a long row, [2, t, h]; those of the first alone, [t, h].
    """
    short, long = tokens[:_SHORT], tokens[:_LONG]
    padding = tokens[:1] * (_LONG - _SHORT)
    rows = [short + padding, [*short[:-1], tokens[-1], *padding], long]
    batch = torch.tensor(rows, device=model.device)
    batched = decoder(input_ids=batch, use_cache=False).last_hidden_state[:2, :_SHORT]
    alone = decoder(input_ids=batch[:1, :_SHORT], use_cache=False).last_hidden_state[0]
    return batched.float(), alone.float()


def _difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest relative difference of a position's hidden states."""
    norms = torch.linalg.vector_norm(second, dim=-1).clamp_min(1e-12)
    relative = torch.linalg.vector_norm(first - second, dim=-1) / norms
    return float(relative.max())


def _cause(model: Any) -> str:
    config = model.config.get_text_config()
    if getattr(config, "use_bidirectional_attention", None):
        return " (use_bidirectional_attention in its config.json)"
    if getattr(config, "is_decoder", None) is False:
        return " (is_decoder is false in its config.json)"
    return ""
