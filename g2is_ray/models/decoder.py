"""Where a transformers language model has its decoder, and its language model as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from g2is_ray.errors import SettingError

_OUTPUT_SWITCHES = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "output_router_logits": False,  # would add the router's auxiliary loss to a row's loss
}


def use_plain_outputs(model: torch.nn.Module) -> None:
    """Make a model return named outputs without extras, whatever its config.json asks for."""
    for module in model.modules():
        config = getattr(module, "config", None)
        for name, value in _OUTPUT_SWITCHES.items():
            if config is not None and getattr(config, name, value) != value:
                setattr(config, name, value)


def language_model_name(model: PreTrainedModel) -> str:
    """Name of the module that holds the text layers, without vision and audio towers and head.

    Multimodal wrappers hold several models; the one whose config is the text config is it.
    """
    text: Any = model.config.get_text_config()
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel) and type(module.config) is type(text):
            return name
    return model.base_model_prefix if hasattr(model, model.base_model_prefix) else ""


def plain_tokens(model: PreTrainedModel, count: int) -> list[int]:
    """Token ids of `count` different tokens, or fewer, that stand for text, not for an image."""
    special: set[int] = set()
    for module in model.modules():
        for name, value in vars(getattr(module, "config", None) or object).items():
            if name.endswith(("_token_id", "_token_index")):
                special.update(one for one in _as_list(value) if isinstance(one, int))
    vocabulary = min(getattr(model.config.get_text_config(), "vocab_size", None) or 1000, 1000)
    return [token for token in range(vocabulary) if token not in special][:count]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class Found(NamedTuple):
    """A decoder, and what it and its model returned for a few tokens."""

    decoder: Any
    decoder_output: Any
    ids_1t: torch.Tensor
    model_output: Any


@contextmanager
def _recorded_outputs(model: torch.nn.Module) -> Iterator[list[tuple[torch.nn.Module, Any]]]:
    """Modules within `model` that return last hidden states, with their outputs, as called."""
    found: list[tuple[torch.nn.Module, Any]] = []

    def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
        if isinstance(getattr(output, "last_hidden_state", None), torch.Tensor):
            found.append((module, output))

    handles = [m.register_forward_hook(hook) for m in model.modules() if m is not model]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def find_decoder(model: Any, *, with_loss: bool = False) -> Found:
    """The decoder that the model's own forward pass takes its last hidden states from.

    Found by a forward pass of three tokens, because attributes such as `base_model` name another
    module in some architectures (OPT, BART, Llama 4).

    Raises:
        SettingError: no module of the model returns last hidden states.
    """
    ids = torch.tensor([plain_tokens(model, 3)], device=model.device)
    with _recorded_outputs(model) as found:
        output = model(input_ids=ids, labels=ids if with_loss else None, use_cache=False)
    if not found:
        raise SettingError(
            f"the model ({type(model).__name__}) has no decoder that returns its last hidden "
            "states; choose another model"
        )
    return Found(*found[-1], ids, output)  # the outermost returns last
