"""The model's own settings, and what a model refuses, before anything is paid for."""

from __future__ import annotations

import dataclasses
import functools
import logging

import torch
from transformers import PreTrainedModel

from g2is_ray.config import GradientSettings, LoraSettings, ModelSettings
from g2is_ray.features import dry_run
from g2is_ray.models import loading, lora_targets
from g2is_ray.models.limits import Limits, limits_of
from g2is_ray.models.lora_modules import gradient_linears
from jobs.session import Session

log = logging.getLogger(__name__)

_SMALL_BYTES = 5 * 2**29  # of float32 weights, which a driver loads in seconds

_checked: set[tuple[object, ...]] = set()  # what this process has computed with


@functools.cache
def model_limits(model: ModelSettings) -> Limits:
    """The limits of the model, which has to be a language model.

    Raises:
        InputError: it cannot be loaded, or is of another kind.
    """
    return limits_of(loading.load_skeleton(model))


def lora_settings(session: Session, model: ModelSettings, *stages: str) -> LoraSettings:
    """The LoRA settings in force, with the names of modules in place of `auto`.

    Raises:
        InputError: the model cannot be loaded.
    """
    settings = session.settings(LoraSettings, *stages)
    if settings.lora_targets != lora_targets.AUTO:
        return settings
    return dataclasses.replace(settings, lora_targets=_automatic_targets(model))


@functools.cache  # says it once
def _automatic_targets(model: ModelSettings) -> tuple[str, ...]:
    found = lora_targets.attention_projections(loading.load_skeleton(model))
    log.info("lora_targets: auto is %s", ",".join(found))
    return found


def check_base(model: ModelSettings, max_tokens: int) -> None:
    """Refuse a model before the pool is read.

    A model whose weights take more than 2.5 GiB in float32 is checked where it is first loaded for
    use; here only its configuration is.

    Raises:
        InputError: it cannot be loaded, is no causal language model, or lacks weights.
        SettingError: rows may be longer than it has positions for.
    """
    model_limits(model).check(max_tokens, model.model)
    if (model,) not in _checked and _is_small(model):
        _load(model)
    _checked.add((model,))


def check_adapter(session: Session, model: ModelSettings, *, gradients: bool) -> None:
    """Refuse LoRA settings before the pool is read or an adapter is warmed up.

    Args:
        gradients: whether gradients are to be taken of the adapter.

    Raises:
        SettingError: they do not fit the model, or gradients cannot be taken with them; says why.
    """
    lora = lora_settings(session, model, "warmup")
    model_with_adapter = loading.add_adapter(loading.load_skeleton(model), lora, seed=0)
    if not gradients:
        return
    layers = session.settings(GradientSettings).lora_layers
    gradient_linears(model_with_adapter, layers)
    if (model, lora, layers) not in _checked and _is_small(model):
        dry_run.check_gradients(_load(model), lora, layers)
        _checked.update([(model,), (model, lora, layers)])


def _is_small(model: ModelSettings) -> bool:
    skeleton = loading.load_skeleton(model)
    return 4 * sum(p.numel() for p in skeleton.parameters()) <= _SMALL_BYTES


def _load(model: ModelSettings) -> PreTrainedModel:
    plain = dataclasses.replace(model, dtype="float32", quantization="none")
    return loading.load_base(plain, torch.device("cpu"))
