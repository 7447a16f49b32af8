"""The warm-up's checkpoints: adapters, with AdamW's moments, that gradients are taken at.

`warmup/checkpoint-1` is the earliest, the last is the warm-up's end. The stage's receipt
holds, as `learning_rates`, the mean learning rate of the steps up to each since the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from g2is_ray.config import ModelSettings
from g2is_ray.errors import SettingError
from g2is_ray.models import loading
from g2is_ray.workspace.layout import WARMUP
from g2is_ray.workspace.workspace import Workspace

_BETAS = "betas"  # float64 [2], beside the moments


def ends(steps: int, checkpoints: int) -> list[int]:
    """Optimizer steps, of `steps`, that the evenly spaced checkpoints are taken after.

    Raises:
        SettingError: there are fewer steps than checkpoints.
    """
    if checkpoints > steps:
        raise SettingError(
            f"checkpoints should be at most the warm-up's optimizer steps, {steps}, got "
            f"{checkpoints}: raise warmup_epochs or warmup_fraction, or take fewer"
        )
    return [round(number * steps / checkpoints) for number in range(1, checkpoints + 1)]


def file_names(number: int) -> list[str]:
    """A checkpoint's files within the warm-up's folder: the adapter's, then the moments'."""
    folder = f"checkpoint-{number}"
    adapter = [f"{folder}/adapter/{name}" for name in loading.ADAPTER_FILES]
    return [*adapter, f"{folder}/moments.safetensors"]


def files(
    number: int,
    adapter: Mapping[str, bytes],
    moments: loading.Moments,
    betas: loading.Betas = loading.BETAS,
) -> dict[str, bytes]:
    """Content of a checkpoint's files, by name within the warm-up's folder.

    Args:
        adapter: content of each of `models.ADAPTER_FILES`.
        betas: that the moments were made with; they adjust gradients too.
    """
    flat = loading.moments_to_tensors(moments)
    flat[_BETAS] = torch.tensor(betas, dtype=torch.float64)
    contents = [*(adapter[name] for name in loading.ADAPTER_FILES), save_tensors(flat)]
    return dict(zip(file_names(number), contents, strict=True))


def weights(workspace: Workspace) -> list[float]:
    """Weight of each checkpoint: its mean learning rate (LESS, arXiv 2402.04333), of sum 1."""
    rates = workspace.stage(WARMUP).require()["learning_rates"]
    return [rate / sum(rates) for rate in rates] if len(rates) > 1 else [1.0]


def load_model(workspace: Workspace, settings: ModelSettings, attention: str = "auto") -> PeftModel:
    """The model with the last checkpoint's adapter, on the default device, for evaluation."""
    base = loading.load_base(settings, loading.default_device(), attention)
    last = len(weights(workspace))
    with workspace.storage.local_folder(f"{WARMUP}/checkpoint-{last}/adapter") as folder:
        return loading.load_adapter(base, folder)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's files in memory."""

    adapter: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]

    @property
    def betas(self) -> loading.Betas:
        """AdamW's, that the moments were made with."""
        if _BETAS not in self.moments:  # written before they were kept
            return loading.BETAS
        first, second = self.moments[_BETAS].tolist()
        return first, second


def read(workspace: Workspace, number: int) -> Checkpoint:
    """Checkpoint `number`, from 1."""
    _, adapter, moments = (f"{WARMUP}/{name}" for name in file_names(number))
    return Checkpoint(
        adapter=load_tensors(workspace.storage.read_bytes(adapter)),
        moments=load_tensors(workspace.storage.read_bytes(moments)),
    )


def put(model: PeftModel, checkpoint: Checkpoint) -> loading.Moments:
    """Give `model` the checkpoint's adapter weights; returns the checkpoint's moments.

    Raises:
        InputError: weights or moments do not fit the model's adapter; names the parameter.
    """
    loading.put_weights(model, checkpoint.adapter)
    return loading.moments_from_tensors(checkpoint.moments, model)
