"""Reads AdamW's moments from the `optimizer.pt` of a Hugging Face Trainer.

The file keys a state by the number of its parameter. Some optimizers also write the names of the
parameters. Without names, numbers follow the trainable ones of `named_parameters()`, in whose order
Trainer passes them to its optimizer; shapes then reveal most adapters that do not fit.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from g2is_ray.errors import InputError
from g2is_ray.models import loading

_OTHERS = "they are of another adapter, or the training had more parameters than the adapter"
_REMEDY = "train with optim='adamw_torch', or leave warmup_from out to warm up here"
_BITSANDBYTES = "__bnb_optimizer_quant_state__"  # newer bitsandbytes holds state1, … in it
_RENAMED = {"state1": "exp_avg", "state2": "exp_avg_sq"}  # from bitsandbytes' names to AdamW's
_MOMENTS = {*_RENAMED, *_RENAMED.values()}

State = dict[str, Any]

_NUMBER: Any = np.float64(0).__reduce__()[0]  # builds a NumPy number from its type and bytes
_TYPES = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u4", "u8", "?")]
# Pickled NumPy numbers name these, in NumPy 1 and 2. They are safe to load: NumPy checks the bytes.
_NUMPY: list[Any] = [
    (_NUMBER, "numpy.core.multiarray.scalar"),
    (_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    *_TYPES,
]


def read(
    file: Path, model: PeftModel, adapter: str = "default"
) -> tuple[loading.Moments, loading.Betas]:
    """Return AdamW's moments m and v of the LoRA parameters of `model`, and AdamW's betas.

    Args:
        file: `optimizer.pt`; no code from it is run.
        model: the model with the adapter.
        adapter: name of the adapter in the training, which is part of its parameters' names.

    Returns:
        The moments by parameter name, float32 in the shapes of the parameters, and (β1, β2).

    Raises:
        InputError: the file is damaged, of another optimizer or of another adapter; names the
            first parameter that does not fit.
    """
    state, groups = _load(file)
    shapes = {name: p.shape for name, p in loading.lora_parameters(model).items()}
    numbers = _numbers(file, state, groups, shapes, adapter)
    flat = {
        f"{key}.{name}": state[number][key]
        for name, number in numbers.items()
        for key in state.get(number, {}).keys() & {"exp_avg", "exp_avg_sq"}
    }
    try:
        moments = loading.moments_from_tensors(flat, model)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    count = sum(len(group["params"]) for group in groups)
    if count > len(shapes):
        raise InputError(
            f"{file}: has moments of {count} parameters, but the adapter has {len(shapes)}: "
            f"{_OTHERS}"
        )
    moments = {name: (m.float(), v.float()) for name, (m, v) in moments.items()}
    return moments, _betas(file, groups)


def _load(file: Path) -> tuple[dict[int, State], list[State]]:
    """Return states by parameter number, with AdamW's names, and the non-empty groups.

    Raises:
        InputError: the file does not hold the state of an optimizer, or of one other than AdamW.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY):
            held = torch.load(file, map_location="cpu", weights_only=True)
        groups = [group for group in held["param_groups"] if group["params"]]
        states = {n: _plain(state) for n, state in held["state"].items()}
        _require_numbers(groups, states)
    except pickle.UnpicklingError as error:
        raise InputError(f"{file}: {_refused_content(error)}; {_REMEDY}") from None
    except (RuntimeError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: cannot be read as tensors ({reason})") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise InputError(f"{file}: is not the state of an optimizer") from None
    _require_adamw(file, states, groups)
    renamed = {n: {_RENAMED.get(k, k): v for k, v in s.items()} for n, s in states.items()}
    return renamed, groups


def _refused_content(error: Exception) -> str:
    """Return why a pickle is refused, without torch's advice to load it unsafely."""
    _, found, rest = str(error).partition("Unsupported global: GLOBAL ")
    if found:
        return f"holds {rest.split()[0]}, and only tensors and numbers are loaded"
    return "cannot be read as tensors: it is damaged, or not the state of an optimizer"


def _plain(state: State) -> State:
    return {k: v for k, v in state.items() if k != _BITSANDBYTES} | state.get(_BITSANDBYTES, {})


def _require_numbers(groups: Sequence[State], states: Mapping[int, State]) -> None:
    """Raise TypeError if parameter numbers, moments, betas or names are of a wrong type."""
    numbers = [number for group in groups for number in group["params"]]
    tensors = [v for state in states.values() for k, v in state.items() if k in _MOMENTS]
    if not all(isinstance(number, int) for number in numbers) or len({*numbers}) < len(numbers):
        raise TypeError
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise TypeError
    for group in groups:
        [float(beta) for beta in group.get("betas", loading.BETAS)]
        [name.split() for name in group.get("param_names", ())]


def _require_adamw(file: Path, states: Mapping[int, State], groups: Sequence[State]) -> None:
    keys = {key for state in states.values() for key in state}
    if "qmap1" in keys:
        raise InputError(
            f"{file}: is of a bitsandbytes 8-bit optimizer, which quantizes moments; {_REMEDY}"
        )
    if any(group.get("maximize") for group in groups):
        raise InputError(f"{file}: is of an optimizer that maximizes the loss; {_REMEDY}")
    if not ({"exp_avg", "exp_avg_sq"} <= keys or keys >= _RENAMED.keys()):
        found = ", ".join(sorted(keys)) or "nothing"
        raise InputError(
            f"{file}: holds {found}, not AdamW's moments exp_avg and exp_avg_sq; {_REMEDY}"
        )


def _betas(file: Path, groups: Sequence[State]) -> loading.Betas:
    found = {tuple(float(beta) for beta in group.get("betas", loading.BETAS)) for group in groups}
    if len(found) > 1:
        raise InputError(
            f"{file}: betas differ between the groups of parameters: "
            f"{', '.join(map(str, sorted(found)))}; {_REMEDY}"
        )
    betas = next(iter(found), loading.BETAS)
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise InputError(f"{file}: betas should be two numbers in [0, 1), got {betas}; {_REMEDY}")
    return betas[0], betas[1]


# ---- parameter numbers -------------------------------------------------------


def _numbers(
    file: Path,
    states: Mapping[int, State],
    groups: Sequence[State],
    shapes: Mapping[str, torch.Size],
    adapter: str,
) -> dict[str, int]:
    """Return the number of each parameter that has one, by name."""
    order = [number for group in groups for number in group["params"]]
    if any("param_names" in group for group in groups):
        names = [name for group in groups for name in group.get("param_names", ())]
        return _by_name(file, names, order, shapes, adapter)
    if len(groups) == 1:
        return dict(zip(shapes, order, strict=False))  # the caller names missing parameters
    if loraplus := _by_factor(groups, shapes):
        found = {name: states.get(number, {}).get("exp_avg") for name, number in loraplus.items()}
        if all(m is not None and m.shape == shapes[name] for name, m in found.items()):
            return loraplus
    raise InputError(
        f"{file}: has the parameters in {len(groups)} groups without names, so their order is "
        f"unknown: Trainer puts a LoRA adapter's parameters into one group; {_REMEDY}"
    )


def _by_name(
    file: Path,
    names: Sequence[str],
    order: Sequence[int],
    shapes: Mapping[str, torch.Size],
    adapter: str,
) -> dict[str, int]:
    if len(names) != len(order):
        raise InputError(f"{file}: names {len(names)} parameters of {len(order)}; {_REMEDY}")
    plain = [loading.parameter_name(name.replace("_orig_mod.", ""), adapter) for name in names]
    strange = [name for name, short in zip(names, plain, strict=True) if short not in shapes]
    if strange:
        raise InputError(
            f"{file}: has moments of {strange[0]}, which is no parameter of the adapter: {_OTHERS}"
        )
    return dict(zip(plain, order, strict=True))


def _by_factor(groups: Sequence[State], shapes: Mapping[str, torch.Size]) -> dict[str, int] | None:
    """Return the numbers as LoRA+ orders them, A in one group and B in the next, or None."""
    factors = [[name for name in shapes if f".lora_{factor}." in name] for factor in "AB"]
    if [len(group["params"]) for group in groups] != [len(names) for names in factors]:
        return None
    pairs = zip(groups, factors, strict=True)
    return {n: i for group, names in pairs for n, i in zip(names, group["params"], strict=True)}
