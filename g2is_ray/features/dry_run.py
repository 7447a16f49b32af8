"""Takes gradients of two rows before the warm-up, so that unsuitable settings fail early."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from g2is_ray.chat.encoder import Encoded
from g2is_ray.config import LoraSettings
from g2is_ray.errors import SettingError
from g2is_ray.features.gradients import GradientComputer
from g2is_ray.features.projection import make_projection
from g2is_ray.models import loading, probe
from g2is_ray.models.batches import IGNORED
from g2is_ray.models.decoder import plain_tokens
from g2is_ray.models.lora_modules import gradient_linears

_LENGTHS = (7, 4)  # tokens of each row; both differ from the number of rows


def check_gradients(base: Any, settings: LoraSettings, lora_layers: str = "all") -> None:
    """Refuse LoRA settings with which a row's gradients cannot be separated from its batch's.

    Takes the gradients of two rows, in one batch and one by one, with a temporary adapter of
    rank 1. Costs three forward and backward passes of at most 14 tokens.

    Args:
        base: the model without an adapter, in evaluation mode; unchanged afterwards.
        settings: which modules get an adapter.
        lora_layers: see `GradientSettings`.

    Raises:
        SettingError: `settings` or `lora_layers` do not fit the model, a module is never called or
            mixes examples, or gradients depend on the batch; names the first problem.
    """
    smallest = dataclasses.replace(settings, lora_r=1, lora_alpha=1)
    model = loading.add_adapter(base, smallest, seed=0).eval()
    try:
        _compare(model, lora_layers)
    finally:
        model.unload()
        for parameter in base.parameters():
            parameter.requires_grad_(parameter.is_floating_point())


def _compare(model: Any, lora_layers: str) -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = loading.lora_parameters(model)
    for parameter in parameters.values():  # with B = 0, gradients of A would be zero
        noise = torch.randn(parameter.shape, generator=generator) * 0.05
        parameter.data.copy_(noise)
    linears = gradient_linears(model, lora_layers)
    sizes = {name: module.weight.numel() for name, module in linears.items()}
    computer = GradientComputer(
        model,
        make_projection("sparse", 256, 0, sizes),
        None,
        pad_id=0,
        token_budget=sum(_LENGTHS) * len(_LENGTHS),
        lora_layers=lora_layers,
    )
    tokens = plain_tokens(model.get_base_model(), max(_LENGTHS))
    rows = [_row((tokens * max(_LENGTHS))[:length]) for length in _LENGTHS]
    try:
        together = computer.compute(rows, adjust=False)
        alone = [computer.compute([row], adjust=False) for row in rows]
    except (AttributeError, TypeError) as error:  # raised by a module that is not plainly linear
        raise SettingError(
            f"lora_targets: a module cannot have an adapter: {error}; leave it out"
        ) from error
    for i, one in enumerate(alone):
        _require_equal(model, together.projected[i], one.projected[0])


def _require_equal(model: Any, together: np.ndarray, alone: np.ndarray) -> None:
    difference = float(np.linalg.norm(together - alone))
    if difference > 10 * probe.tolerance(model) * float(np.linalg.norm(alone)):
        raise SettingError(
            "lora_targets: a row's gradient changes by "
            f"{difference / float(np.linalg.norm(alone)):.0%} with the other rows of its batch; "
            "choose other modules"
        )


def _row(ids: list[int]) -> Encoded:
    return Encoded(ids, [IGNORED, *ids[1:]], len(ids))
