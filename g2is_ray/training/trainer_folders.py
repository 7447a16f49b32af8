"""Imports checkpoint folders of a Hugging Face Trainer, which replace the warm-up.

A folder holds a LoRA adapter, as PEFT saves it, and `optimizer.pt` with AdamW's moments.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from g2is_ray.config import ModelSettings
from g2is_ray.errors import InputError, SettingError, one_line
from g2is_ray.models import checkpoints, loading, lora_modules
from g2is_ray.training import base_model, optimizer_files
from g2is_ray.workspace.layout import WARMUP
from g2is_ray.workspace.workspace import STAGE_RECEIPT, Workspace

OPTIMIZER, STATE = "optimizer.pt", "trainer_state.json"
_CONFIG, _WEIGHTS = loading.ADAPTER_FILES
_PICKLED_WEIGHTS = "adapter_model.bin"  # written by older versions of PEFT

# Settings that a plain LoRA adapter on linear modules may have; gradients need such an adapter.
_PLAIN = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version"),
    *("auto_mapping", "inference_mode", "megatron_core", "qalora_group_size"),
    *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "init_lora_weights", "eva_config"),
}
_OFF: tuple[Any, ...] = (None, False, "none", [], {})
_INITS_THAT_KEEP_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class _Folder:
    """A checkpoint folder that has all files that an import reads."""

    path: Path
    adapter: Path  # equals `path`, or is a folder in it with the adapter's name

    @property
    def adapter_name(self) -> str:
        return "default" if self.adapter == self.path else self.adapter.name

    @property
    def config(self) -> Path:
        return self.adapter / _CONFIG

    @property
    def weights(self) -> Path:
        return next(f for f in _weight_files(self.adapter) if f.is_file())

    @property
    def optimizer(self) -> Path:
        return self.path / OPTIMIZER


def _weight_files(adapter: Path) -> tuple[Path, Path]:
    return adapter / _WEIGHTS, adapter / _PICKLED_WEIGHTS


# ---- folders -----------------------------------------------------------------


def require_files(folders: Sequence[Path]) -> None:
    """Refuse folders that lack a file that an import reads.

    Raises:
        InputError: names the folder, the file and the software that writes such folders.
    """
    for folder in folders:
        _find(folder)


def _find(path: Path) -> _Folder:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise InputError(
            f"{path} {what}; warmup_from takes local checkpoint folders of a Hugging Face Trainer"
        )
    adapter = _adapter_folder(path)
    if not any(file.is_file() for file in _weight_files(adapter)):
        _refuse_shards(path, _WEIGHTS)
        raise InputError(
            f"{adapter} has {_CONFIG} but no {_WEIGHTS}; give checkpoint folders that a Hugging "
            "Face Trainer saved"
        )
    if not (path / OPTIMIZER).is_file():
        _refuse_shards(path, OPTIMIZER)
        raise InputError(
            f"{path} has an adapter but no {OPTIMIZER}: it was saved without AdamW's moments, as "
            "save_only_model and save_model do; give a checkpoint folder of a training without "
            "save_only_model, or leave warmup_from out to warm up here"
        )
    return _Folder(path, adapter)


def _adapter_folder(path: Path) -> Path:
    """Return the adapter's folder: `path`, or a folder in it with the adapter's name."""
    if (path / _CONFIG).is_file():
        return path
    within = sorted(file.parent for file in path.glob(f"*/{_CONFIG}"))
    checkpoints_within = sorted(path.glob("checkpoint-*"))
    if checkpoints_within:
        raise InputError(
            f"{path} is the folder of a training; give checkpoint folders in it, such as "
            f"{checkpoints_within[-1].name}"
        )
    if len(within) > 1:
        raise InputError(
            f"{path} has several adapters, {', '.join(f.name for f in within)}, whose moments are "
            "in one file; train a single adapter"
        )
    if within:
        return within[0]
    _refuse_shards(path, _CONFIG)
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        for file in path.glob(pattern):
            raise InputError(
                f"{path} has no {_CONFIG} but {file.name}: it is of a full fine-tuning, and "
                "gradients need a LoRA adapter; train one, or leave warmup_from out"
            )
    raise InputError(
        f"{path} has no {_CONFIG}; give checkpoint folders that a Hugging Face Trainer saved while "
        "it trained a LoRA adapter"
    )


def _refuse_shards(path: Path, lacking: str) -> None:
    signs = (
        *(("DeepSpeed", sign) for sign in ("global_step*", "zero_to_fp32.py")),
        *(("FSDP", sign) for sign in ("optimizer.bin", "optimizer_[0-9]*")),
        *(("FSDP", sign) for sign in ("pytorch_model_fsdp*", "*.distcp")),
    )
    for maker, sign in signs:
        for found in path.glob(sign):
            raise InputError(
                f"{path} has no {lacking} but {found.name}: files of {maker} are not supported; "
                f"train without {maker}, or leave warmup_from out to warm up here"
            )


def digests(folders: Sequence[Path]) -> list[dict[str, str]]:
    """Return name and SHA-256 of each folder, over the files that an import reads."""
    return [{folder.name: _digest(_find(folder))} for folder in folders]


def _digest(folder: _Folder) -> str:
    whole = hashlib.sha256()
    for file in (folder.config, folder.weights, folder.optimizer, folder.path / STATE):
        if file.is_file():
            with file.open("rb") as opened:
                whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()


def import_checkpoints(
    workspace: Workspace, folders: Sequence[Path], settings: ModelSettings
) -> dict[str, Any]:
    """Write the folders' adapters and moments as the checkpoints of the stage `warmup`.

    Args:
        workspace: written to.
        folders: checkpoint folders in the order of training.
        settings: names the model that the adapters belong to.

    Returns:
        The stage's receipt. It holds `betas`, AdamW's betas of each checkpoint; `train_loss`, the
        last loss that Trainer logged, or None; and `base`, the name of the adapter's base model.

    Raises:
        InputError: a folder cannot be used; names the file or setting that does not fit.
    """
    began = time.monotonic()
    found = [_find(folder) for folder in folders]
    rates = _mean_learning_rates(folders)
    first = _config(found[0])
    skeleton = loading.load_skeleton(settings)
    base_model.require_same(found[0].config, first, settings.model, skeleton.config)
    model = _add_adapter(skeleton, found[0])
    files: dict[str, bytes] = {}
    all_betas = []
    for number, folder in enumerate(found, start=1):
        config = _config(folder)
        _require_same(first, config, found[0], folder)
        weights = _weights(folder)
        try:
            loading.put_weights(model, load_tensors(weights))
        except (InputError, SafetensorError) as error:
            raise InputError(f"{folder.weights}: {error}") from None
        moments, betas = optimizer_files.read(folder.optimizer, model, folder.adapter_name)
        adapter = {_CONFIG: _without_init(folder.config, config), _WEIGHTS: weights}
        files |= checkpoints.files(number, adapter, moments, betas)
        all_betas.append(list(betas))
    facts = {
        "imported": [folder.name for folder in folders],
        "learning_rates": rates,
        "betas": all_betas,
        "train_loss": _last_loss(folders[-1] / STATE),
        "base": first.get("base_model_name_or_path"),
        "seconds": round(time.monotonic() - began, 3),
    }
    return workspace.stage(WARMUP).commit(STAGE_RECEIPT, files, facts)


# ---- adapter ---------------------------------------------------------------


def _config(folder: _Folder) -> dict[str, Any]:
    """Return the adapter's settings, with lists sorted.

    Raises:
        InputError: the adapter is not plain LoRA; names the setting.
    """
    file = folder.config
    config = _json(file)
    if config.get("peft_type") != "LORA":
        raise InputError(f"{file}: peft_type should be LORA, got {config.get('peft_type')!r}")
    _require_known_base(file, config.get("init_lora_weights"))
    for name, value in config.items():
        if name not in _PLAIN and value not in _OFF:
            raise InputError(
                f"{file}: sets {name} to {json.dumps(value)}, but gradients need plain LoRA on "
                f"linear modules; train an adapter without {name}"
            )
    return {k: _sorted(v) for k, v in config.items()}


def _sorted(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, list) else value


def _require_known_base(file: Path, init: Any) -> None:
    """Refuse initializations with which PEFT would change the base weights again."""
    if init in _INITS_THAT_KEEP_THE_BASE:
        return
    if init == "mica":
        raise InputError(
            f"{file}: init_lora_weights is 'mica', which trains only the A matrices, so B has no "
            "moments; train with init_lora_weights=True"
        )
    raise InputError(
        f"{file}: init_lora_weights is {init!r}, which changes the base weights when the adapter "
        "is added, perhaps not as in the training; either train with init_lora_weights=True, or "
        "save the changed weights by model.unload().save_pretrained(FOLDER), give FOLDER as the "
        "model, and write it as base_model_name_or_path and true as init_lora_weights (PEFT's "
        "conversion to a plain LoRA, path_initial_model_for_weight_conversion, has no AdamW "
        "moments)"
    )


def _without_init(file: Path, config: Mapping[str, Any]) -> bytes:
    """Return the configuration with the default initialization; weights are loaded anyway."""
    if config.get("init_lora_weights") in (True, None):
        return file.read_bytes()
    return json.dumps(_json(file) | {"init_lora_weights": True, "eva_config": None}).encode()


def _weights(folder: _Folder) -> bytes:
    """Return the adapter's weights as the bytes of a safetensors file."""
    file = folder.weights
    if file.name == _WEIGHTS:
        return file.read_bytes()
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
        return save_tensors({name: tensor.contiguous() for name, tensor in held.items()})
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, AttributeError):
        raise InputError(f"{file}: cannot be read as tensors; save it as {_WEIGHTS}") from None


def _require_same(
    first: Mapping[str, Any], other: Mapping[str, Any], first_folder: _Folder, folder: _Folder
) -> None:
    for name in sorted(first.keys() | other.keys()):
        if first.get(name) != other.get(name):
            raise InputError(
                f"{folder.config}: has {name} {other.get(name)!r}, but {first_folder.path.name} "
                f"has {first.get(name)!r}; give checkpoints of one training"
            )


def _add_adapter(model: Any, folder: _Folder) -> PeftModel:
    """Add an adapter of the folder's shape to the model; refuse it if gradients cannot use it."""
    try:
        config = LoraConfig.from_pretrained(str(folder.adapter))
        config.base_model_name_or_path = None  # PEFT warns if that differs
        config.init_lora_weights = (
            True  # only names and shapes matter; other values read base weights
        )
        with_adapter = get_peft_model(model, config)
    except Exception as error:  # PEFT raises many kinds if a setting has a wrong type
        reason = one_line(error, 200)
        raise InputError(
            f"{folder.config}: does not fit the model: {reason}; give the model that the adapter "
            "was trained on"
        ) from None
    try:
        lora_modules.gradient_linears(with_adapter)
    except (SettingError, InputError) as error:
        raise InputError(f"{folder.config}: {error}") from None
    return with_adapter


# ---- learning rates --------------------------------------------------------


def _mean_learning_rates(folders: Sequence[Path]) -> list[float | None]:
    """Return each folder's mean logged rate since the previous folder; None for a single one."""
    if len(folders) == 1:
        return [None]
    means: list[float | None] = []
    before = 0
    for folder in folders:
        step, logged = _logged(folder / STATE)
        if step <= before:
            raise InputError(
                f"{folder} is of step {step}, but the folder before it is of step {before}; give "
                "warmup_from in the order of training"
            )
        rates = [rate for at, rate in logged if before < at <= step]
        if not sum(rates) > 0:
            raise InputError(
                f"{folder}/{STATE}: logs no learning rate above 0 after step {before} up to "
                f"{step}, which weights this checkpoint; give one checkpoint only"
            )
        means.append(statistics.fmean(rates))
        before = step
    return means


def _last_loss(file: Path) -> float | None:
    """Return the last training loss in the log, or None."""
    if not file.is_file():
        return None
    log = _json(file).get("log_history")
    entries = [e for e in log if isinstance(e, dict)] if isinstance(log, list) else []
    losses = [e["loss"] for e in entries if isinstance(e.get("loss"), int | float)]
    return float(losses[-1]) if losses and math.isfinite(losses[-1]) else None


def _logged(file: Path) -> tuple[int, list[tuple[int, float]]]:
    """Return the file's step, and the (step, learning rate) pairs of its log."""
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
