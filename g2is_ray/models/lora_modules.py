"""A model with a LoRA adapter, made ready for taking gradients: where from, and how cheaply."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import ParamWrapper
from peft.utils import ModulesToSaveWrapper
from transformers.modeling_layers import GradientCheckpointingLayer

from g2is_ray.errors import InputError, SettingError
from g2is_ray.models.loading import lora_parameters, parameter_name


def gradient_linears(model: PeftModel, lora_layers: str = "all") -> dict[str, torch.nn.Linear]:
    """The LoRA linears that gradients are taken of, by their weights' name.

    Args:
        lora_layers: `all`, or `last:N` for those in the last N layers.

    Raises:
        SettingError: the adapter has parameters of another kind, or the model fewer layers.
        InputError: the adapter has no LoRA linear.
    """
    found = {
        parameter_name(f"{name}.weight"): module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and (".lora_A." in name or ".lora_B." in name)
    }
    if not found:
        raise InputError("the adapter has no LoRA linear modules to take gradients of")
    _refuse_others(model, found)
    if lora_layers == "all":
        return found
    total = model.config.get_text_config().num_hidden_layers
    first = total - int(lora_layers.removeprefix("last:"))
    last = {name: module for name, module in found.items() if _layer(name) >= max(0, first)}
    if first < 0 or not last:
        raise SettingError(
            f"lora_layers {lora_layers} does not fit: the model has {total} layers, and the "
            f"adapter is on layers up to {max(map(_layer, found))}, counted from 0"
        )
    return last


def fused_expert_names(model: PeftModel) -> set[str]:
    """The names in `gradient_linears` whose weights PEFT adds to a parameter of all experts."""
    return {
        parameter_name(f"{outer}.{name}")
        for outer, wrapper in model.named_modules()
        if isinstance(wrapper, ParamWrapper)
        for kind in ("lora_A", "lora_B")
        for name in (f"{kind}.{one}.weight" for one in getattr(wrapper, kind))
    }


def _layer(name: str) -> int:
    """Number of the layer that a parameter belongs to, -1 for one that is in none."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else -1


def _refuse_others(model: PeftModel, covered: dict[str, torch.nn.Linear]) -> None:
    for name in lora_parameters(model):
        if name not in covered:
            raise SettingError(
                f"gradients are taken of LoRA linear modules only, and {name} is not the weight of "
                "one; choose lora_targets without embeddings and convolutions, and no DoRA or bias"
            )
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            raise SettingError(
                f"the adapter trains a whole copy of {name} (modules_to_save), and gradients are "
                "taken of LoRA linear modules only; use an adapter without"
            )
    base: Any = model.get_base_model()
    if hasattr(base.get_output_embeddings(), "lora_A"):
        raise SettingError(
            "the adapter is on the output layer too, whose gradient would need all logits at "
            "once; leave that out of lora_targets"
        )


def checkpoint_layers(model: PeftModel) -> None:
    """Turn on transformers' gradient checkpointing, which it applies in training mode only.

    Only the layers themselves are put into that mode; what is inside them, dropout above
    all, stays in evaluation mode.
    """
    base: Any = model.get_base_model()
    base.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def compile_layers(model: PeftModel) -> None:
    """Compile norms and whatever else of a layer has no adapter inside.

    Taps work on Python's side of the backward pass, which the compiler cannot look into.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            for part in layer.children():
                if not any("lora_" in name for name, _ in part.named_parameters()):
                    part.compile(dynamic=True)
