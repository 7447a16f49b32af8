"""Which modules of a model get a LoRA adapter."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from g2is_ray.config import LoraSettings
from g2is_ray.errors import SettingError
from g2is_ray.models.decoder import language_model_name

AUTO = ("auto",)
ALL_LINEAR = ("all-linear",)

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")  # names that most architectures use
_ATTENTION = re.compile(r"attn|attention|mixer|mamba|temporal_block|time_mix", re.IGNORECASE)
_NOT_CALLED = {  # modules whose weights Mamba's code reads past an adapter, by model type
    ".out_proj": ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"),  # PEFT's list
    ".dt_proj": ("mamba", "falcon_mamba", "jamba"),
}
_CROSS_ATTENTION = re.compile(r"encoder_?attn|cross_?attn|cross_?attention", re.IGNORECASE)


def chosen(model: PreTrainedModel, settings: LoraSettings) -> LoraSettings:
    """The settings with the names of modules in place of `auto`.

    Args:
        model: with its weights or on the meta device.

    Raises:
        SettingError: the model has no linear modules.
    """
    if settings.lora_targets != AUTO:
        return settings
    return dataclasses.replace(settings, lora_targets=attention_projections(model))


def attention_projections(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the attention's linear modules, or of all where no module is called attention.

    Each is as short as possible: with its parent's name (attn.c_proj) where a module that is no
    part of attention ends in the same one.
    """
    names = linear_names(model)
    if not names:
        raise SettingError("the model has no linear modules that could have an adapter")
    if all(any(_ends_in(name, one) for name in names) for one in _PROJECTIONS):
        return _PROJECTIONS
    wanted = [name for name in names if _ATTENTION.search(name.rpartition(".")[0])] or names
    others = set(names) - set(wanted)
    found: dict[str, None] = {}
    for name in wanted:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            suffix = ".".join(parts[-count:])
            if not parts[-count].isdigit() and not any(_ends_in(one, suffix) for one in others):
                found[suffix] = None
                break
    return tuple(found)


def linear_names(model: PreTrainedModel) -> list[str]:
    """Linear modules of the text layers that can have an adapter: no head, tower or router."""
    left_out = re.compile(left_out_pattern(model) or "(?!)")
    return [name for name in _linears(model) if not left_out.fullmatch(name)]


def left_out_pattern(model: PreTrainedModel, targets: tuple[str, ...] = ALL_LINEAR) -> str | None:
    """A pattern of the modules that get no adapter although `targets` name them; None for none.

    Those outside the text layers (vision and audio towers, the head) and attention to an encoder,
    which no text alone reaches; with all-linear, also routers and others that PEFT cannot adapt.
    """
    inside = language_model_name(model)
    linears = _linears(model)
    named = linears if targets == ALL_LINEAR else dict(model.named_modules())
    found: dict[str, None] = {}
    for name in named:
        if targets != ALL_LINEAR and not any(_ends_in(name, one) for one in targets):
            continue
        if inside and not name.startswith(f"{inside}."):
            found[rf"(?!{re.escape(inside)}\.).*"] = None
        elif _in_cross_attention(model, name) or (
            targets == ALL_LINEAR and not _takes_lora(model, name)
        ):
            found[re.sub(r"(?<=\.)\d+(?=\\?\.)", r"\\d+", re.escape(name))] = None
    return "|".join(found) or None


def misfit(model: PreTrainedModel, targets: tuple[str, ...]) -> str | None:
    """The first of `targets` that names no module of the text layers, as a reason."""
    left_out = re.compile(left_out_pattern(model, targets) or "(?!)")
    names = [name for name, _ in model.named_modules() if not left_out.fullmatch(name)]
    for target in targets:
        if not any(_ends_in(name, target) for name in names):
            return f"it has no {target}"
    return None


def last_names(names: Iterable[str]) -> str:
    """Different last parts of modules' names, in alphabetical order, for a message."""
    return ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))


def _linears(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


def _ends_in(name: str, suffix: str) -> bool:
    return f".{name}".endswith(f".{suffix}")


def _in_cross_attention(model: PreTrainedModel, name: str) -> bool:
    parts = name.split(".")
    for count in range(1, len(parts)):
        parent = ".".join(parts[:count])
        if re.fullmatch(_CROSS_ATTENTION, parts[count - 1]):
            return True
        if "CrossAttentionDecoderLayer" in type(model.get_submodule(parent)).__name__:
            return True
    return False


@torch.no_grad()
def _takes_lora(model: PreTrainedModel, name: str) -> bool:
    """Whether PEFT adapts the linear module, and its output is linear in its input.

    Routers that derive from a linear module return several tensors; grouped ones take other shapes.
    """
    module: Any = model.get_submodule(name)
    kind = model.config.model_type
    if any(name.endswith(one) and kind in kinds for one, kinds in _NOT_CALLED.items()):
        return False
    own = type(module).forward not in (torch.nn.Linear.forward, Conv1D.forward)
    if not own or type(module).__module__.startswith("bitsandbytes"):
        return True
    try:
        output = module(module.weight.new_zeros(1, 3, module.in_features))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False
    return isinstance(output, torch.Tensor) and output.shape == (1, 3, module.out_features)
