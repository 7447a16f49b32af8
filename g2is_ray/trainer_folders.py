"""Checkpoint folders of a Hugging Face Trainer, taken in place of a warm-up.

An optimizer's state knows its parameters by number. Trainer gives its optimizer the trainable
ones in the order of `named_parameters()`, so moments find their parameters by that order, on
the model that the folder's adapter is put on, and shapes tell most adapters apart.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from g2is_ray import checkpoints, models
from g2is_ray.config import ModelSettings
from g2is_ray.errors import InputError
from g2is_ray.layout import WARMUP
from g2is_ray.workspace import STAGE_RECEIPT, Workspace

OPTIMIZER, STATE = "optimizer.pt", "trainer_state.json"
_REMEDY = "train with optim='adamw_torch', or leave warmup_from out to warm up here"
_BITSANDBYTES = "__bnb_optimizer_quant_state__"  # holds state1, … in its newer versions

# What an adapter may set and still be plain LoRA on linear modules, as gradients need it.
_PLAIN = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version"),
    *("auto_mapping", "inference_mode", "megatron_core", "qalora_group_size"),
    *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "init_lora_weights"),
}
_OFF: tuple[Any, ...] = (None, False, "none", [], {})


def require_files(folders: Sequence[Path]) -> None:
    """Refuse folders that lack a file that an import reads.

    Raises:
        InputError: names folder and file, and who writes such folders.
    """
    for folder in folders:
        for name in (*models.ADAPTER_FILES, OPTIMIZER):
            if not (folder / name).is_file():
                if name == OPTIMIZER:
                    _refuse_sharded(folder)
                raise InputError(
                    f"{folder} has no {name}; give checkpoint folders that a Hugging Face Trainer "
                    "saved, not with save_only_model"
                )


def _refuse_sharded(folder: Path) -> None:
    signs = ("DeepSpeed", "global_step*"), ("FSDP", "optimizer.bin"), ("FSDP", "optimizer_0")
    for maker, sign in signs:
        for found in folder.glob(sign):
            raise InputError(
                f"{folder} has no {OPTIMIZER} but {found.name}: {maker}'s way of saving moments is "
                f"not read; train without {maker}, or leave warmup_from out to warm up here"
            )


def digests(folders: Sequence[Path]) -> list[dict[str, str]]:
    """Name and SHA-256 of each folder's content, as far as it is read."""
    return [{folder.name: _digest(folder)} for folder in folders]


def _digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for name in (*models.ADAPTER_FILES, OPTIMIZER, STATE):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def import_checkpoints(
    workspace: Workspace, folders: Sequence[Path], settings: ModelSettings
) -> dict[str, Any]:
    """Write the folders' adapters and moments as the checkpoints of the stage `warmup`.

    Args:
        folders: in order of training.
        settings: of the model that the adapters belong to.

    Returns:
        The stage's receipt.

    Raises:
        InputError: a folder cannot be used; names what does not fit.
    """
    began = time.monotonic()
    require_files(folders)
    rates = _mean_learning_rates(folders)
    first = _config(folders[0])
    skeleton = _put_on(models.load_skeleton(settings), folders[0])
    files: dict[str, bytes] = {}
    for number, folder in enumerate(folders, start=1):
        _require_same(first, _config(folder), folders[0], folder)
        adapter = {name: (folder / name).read_bytes() for name in models.ADAPTER_FILES}
        try:
            models.put_weights(skeleton, load_tensors(adapter["adapter_model.safetensors"]))
        except (InputError, SafetensorError) as error:
            raise InputError(f"{folder}/adapter_model.safetensors: {error}") from None
        files |= checkpoints.files(number, adapter, read_moments(folder, skeleton))
    facts = {
        "imported": [folder.name for folder in folders],
        "learning_rates": rates,
        "seconds": round(time.monotonic() - began, 3),
    }
    return workspace.commit(WARMUP, STAGE_RECEIPT, files, facts)


# ---- adapter ---------------------------------------------------------------


def _config(folder: Path) -> dict[str, Any]:
    """The adapter's settings, lists sorted.

    Raises:
        InputError: the adapter is not plain LoRA; names the setting.
    """
    file = folder / "adapter_config.json"
    config = _json(file)
    if config.get("peft_type") != "LORA":
        raise InputError(f"{file}: peft_type should be LORA, got {config.get('peft_type')!r}")
    for name, value in config.items():
        if name not in _PLAIN and value not in _OFF:
            raise InputError(
                f"{file}: sets {name} to {json.dumps(value)}, but gradients are taken of plain "
                "LoRA on linear modules only; train an adapter without it"
            )
    return {k: sorted(v) if isinstance(v, list) else v for k, v in config.items()}


def _require_same(
    first: Mapping[str, Any], other: Mapping[str, Any], its: Path, folder: Path
) -> None:
    for name in sorted(first.keys() | other.keys()):
        if first.get(name) != other.get(name):
            raise InputError(
                f"{folder}/adapter_config.json: has {name} {other.get(name)!r}, but {its.name} "
                f"has {first.get(name)!r}; give checkpoints of one training"
            )


def _put_on(model: Any, folder: Path) -> PeftModel:
    config = LoraConfig.from_pretrained(str(folder))
    config.base_model_name_or_path = None  # where the model lay then; PEFT warns if that differs
    config.init_lora_weights = True  # only names and shapes count, and others read base weights
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"{folder}/adapter_config.json: does not fit the model ({reason}); give the model "
            "that the adapter was trained on"
        ) from None


# ---- moments ---------------------------------------------------------------


def read_moments(folder: Path, model: PeftModel) -> models.Moments:
    """AdamW's moments in the folder's `optimizer.pt`, for the LoRA parameters of `model`.

    Raises:
        InputError: the file is damaged, of another optimizer or of another adapter; names the
            first parameter that does not fit.
    """
    file = folder / OPTIMIZER
    state, order = _optimizer_state(file)
    _require_adamw(file, state)
    names = list(models.lora_parameters(model))
    flat = {
        f"{key}.{name}": state[number][key]
        for name, number in zip(names, order, strict=False)  # what is missing is named below
        for key in state.get(number, {}).keys() & {"exp_avg", "exp_avg_sq"}
    }
    try:
        moments = models.moments_from_tensors(flat, model)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    if len(order) > len(names):
        raise InputError(
            f"{file}: has moments of {len(order)} parameters, but the adapter has {len(names)}: "
            "they are of another adapter, or other parameters were trained along with it"
        )
    return {name: (m.float(), v.float()) for name, (m, v) in moments.items()}


def _optimizer_state(file: Path) -> tuple[dict[int, dict[str, Any]], list[int]]:
    """State by parameter number, and the numbers in the order of parameters."""
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
        groups = [group["params"] for group in held["param_groups"] if group["params"]]
        state = held["state"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: cannot be read as tensors ({reason})") from None
    except (KeyError, TypeError, IndexError):
        raise InputError(f"{file}: is not the state of an optimizer") from None
    if len(groups) > 1:  # LoRA+ has one for A and one for B, which reorders parameters
        raise InputError(
            f"{file}: has the parameters in {len(groups)} groups, where Trainer has a LoRA "
            f"adapter's in one, so their order is unknown; {_REMEDY}"
        )
    return state, [number for group in groups for number in group]


def _require_adamw(file: Path, state: Mapping[int, Mapping[str, Any]]) -> None:
    keys = {key for held in state.values() for key in (*held, *held.get(_BITSANDBYTES, ()))}
    if "state1" in keys:
        kind = "8-bit" if "qmap1" in keys else "32-bit or paged"
        raise InputError(f"{file}: is of a bitsandbytes {kind} optimizer, not AdamW; {_REMEDY}")
    if not {"exp_avg", "exp_avg_sq"} <= keys:
        found = ", ".join(sorted(keys)) or "nothing"
        raise InputError(
            f"{file}: holds {found}, not AdamW's moments exp_avg and exp_avg_sq; {_REMEDY}"
        )


# ---- learning rates --------------------------------------------------------


def _mean_learning_rates(folders: Sequence[Path]) -> list[float | None]:
    """As logged since the folder before; None for a single folder, which needs no weight."""
    if len(folders) == 1:
        return [None]
    means: list[float | None] = []
    before = 0
    for folder in folders:
        step, logged = _logged(folder / STATE)
        if step <= before:
            raise InputError(
                f"{folder} is of step {step}, the folder before it of step {before}: give "
                "warmup_from in the order of training"
            )
        rates = [rate for at, rate in logged if before < at <= step]
        if not sum(rates) > 0:
            raise InputError(
                f"{folder}/{STATE}: has no learning rate above 0 logged after step {before} up to "
                f"{step}, to weight this checkpoint by; give one checkpoint only"
            )
        means.append(statistics.fmean(rates))
        before = step
    return means


def _logged(file: Path) -> tuple[int, list[tuple[int, float]]]:
    """Step that the file was written at; steps and learning rates in its log."""
    if not file.is_file():
        raise InputError(f"{file.parent} has no {STATE}, which several checkpoints need")
    try:
        state = _json(file)
        rates = [e for e in state["log_history"] if "learning_rate" in e]
        return int(state["global_step"]), [(e["step"], float(e["learning_rate"])) for e in rates]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{file}: is not the state of a Hugging Face Trainer") from None


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{file}: is not a JSON object")
    return value
