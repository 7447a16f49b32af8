"""Base models, tokenizers and LoRA adapters, by transformers and PEFT."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)
from transformers.utils.logging import disable_progress_bar

from g2is_ray.config import ExecutionSettings, LoraSettings, ModelSettings
from g2is_ray.errors import InputError, SettingError
from g2is_ray.models import lora_targets, probe
from g2is_ray.models.decoder import use_plain_outputs
from g2is_ray.workspace import scratch

disable_progress_bar()  # for weights: a bar per worker tells nothing

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def token_budget(settings: ExecutionSettings) -> int:
    """Padded tokens of a batch: a GPU needs many at once to be busy, a CPU does not."""
    if settings.batch_tokens == "auto" or not settings.batch_tokens:
        return 8192 if default_device().type == "cuda" else 512
    return settings.batch_tokens


def base_dtype(settings: ModelSettings, device: torch.device) -> torch.dtype:
    """Number type of the base weights on `device`."""
    if settings.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token that the model has an embedding for.

    Which token pads does not matter, because nothing that counts sees it.

    Raises:
        InputError: there is none of that name, or it cannot be loaded.
    """
    config = load_config(settings)
    with _explained(settings.model):
        tokenizer = AutoTokenizer.from_pretrained(
            settings.model, trust_remote_code=settings.trust_remote_code
        )
    vocabulary = getattr(config.get_text_config(), "vocab_size", None) or len(tokenizer)
    for number in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0):
        if isinstance(number, int) and 0 <= number < vocabulary:
            if number != tokenizer.pad_token_id:
                tokenizer.pad_token = str(tokenizer.convert_ids_to_tokens(number))
            break
    return tokenizer


def load_config(settings: ModelSettings) -> PreTrainedConfig:
    """The model's configuration, of a kind that predicts the next token from those before.

    Raises:
        InputError: there is none of that name, or it is of another kind.
    """
    with _explained(settings.model):
        config = AutoConfig.from_pretrained(
            settings.model, trust_remote_code=settings.trust_remote_code
        )
    name = f"model {settings.model} ({', '.join(config.architectures or [config.model_type])})"
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{name} is an encoder-decoder, and gradients are taken of decoder-only language "
            "models; choose one of those"
        )
    if not _is_known(config):
        raise InputError(
            f"{name} is no language model that transformers can load to predict the next token "
            f"(model_type {config.model_type}); choose a decoder-only language model"
        )
    return config


def _is_known(config: PreTrainedConfig) -> bool:
    remote = getattr(config, "auto_map", None) or {}
    return "AutoModelForCausalLM" in remote or _auto_class(config) is not None


def _auto_class(config: PreTrainedConfig) -> Any:
    """Which of transformers' factories makes a language model of `config`, multimodal or not."""
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return None


def load_base(
    settings: ModelSettings, device: torch.device, attention: str = "auto"
) -> PreTrainedModel:
    """The base model on `device`, in evaluation mode, checked by `probe.check_base`.

    Args:
        attention: as in `ExecutionSettings`.

    Raises:
        InputError: there is none of that name, it cannot be loaded, lacks weights, or its numbers
            for a row are not the row's own.
    """
    config = load_config(settings)
    dtype = base_dtype(settings, device)
    quantization = _quantization(settings, dtype, device)
    factory: Any = _auto_class(config) or AutoModelForCausalLM
    with _explained(settings.model):
        model, report = factory.from_pretrained(
            settings.model,
            trust_remote_code=settings.trust_remote_code,
            dtype=dtype,
            attn_implementation=None if attention == "auto" else attention,
            output_loading_info=True,
            **quantization,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(
            f"model {settings.model} lacks {len(missing)} weights of {type(model).__name__}, such "
            f"as {missing[0]}: they would be random; choose a checkpoint of a whole language model"
        )
    model = (model if quantization else model.to(device)).eval()
    use_plain_outputs(model)
    probe.check_base(model, settings.model)
    return model


def _quantization(
    settings: ModelSettings, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """What transformers is told, where weights are to be quantized as they are loaded."""
    if settings.quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingError(
            f"quantization {settings.quantization} needs bitsandbytes, which is not installed "
            "where the model is loaded; pip install bitsandbytes"
        )
    if settings.quantization == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(  # QLoRA's: NormalFloat4, constants quantized too
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def load_skeleton(settings: ModelSettings) -> PreTrainedModel:
    """The base model's modules without their weights, on the meta device: costs no memory.

    Raises:
        InputError: there is none of that name, or it cannot be loaded.
    """
    config = load_config(settings)
    factory = _auto_class(config) or AutoModelForCausalLM
    with _explained(settings.model), torch.device("meta"):
        return factory.from_config(config, trust_remote_code=settings.trust_remote_code)


class _explained:  # noqa: N801  reads as a verb in `with`
    """Turn what transformers raises for an unusable model into one sentence."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __enter__(self) -> None:
        if Path(self.model).is_dir() and not (Path(self.model) / "config.json").is_file():
            raise InputError(f"model {self.model}: the directory has no config.json")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):  # each part of transformers raises kinds of its own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise InputError(
                f"model {self.model} cannot be loaded: it is neither a usable local directory nor "
                f"a model that the Hugging Face hub gives ({reason})"
            ) from error


def add_adapter(model: PreTrainedModel, settings: LoraSettings, seed: int) -> PeftModel:
    """Put a fresh LoRA adapter on `model`; its initial weights depend on `seed` only.

    Vision and audio towers get none, whatever their modules are called.

    Raises:
        SettingError: one of `lora_targets` names no module of the model, or none that can
            have an adapter; or dropout is asked for where there can be none.
    """
    settings = lora_targets.chosen(model, settings)
    names = settings.lora_targets
    linear = lora_targets.linear_names(model)  # PEFT leaves a refused model half changed
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear" if names == lora_targets.ALL_LINEAR else list(names),
        exclude_modules=lora_targets.left_out_pattern(model, names),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        reason = lora_targets.misfit(model, names) if names != lora_targets.ALL_LINEAR else None
        if reason:
            raise ValueError(reason)
        return get_peft_model(model, config)
    except ValueError as error:
        if "lora_dropout" in str(error):
            raise SettingError(
                f"lora_targets {', '.join(names)} put adapters on experts, whose weights are fused "
                f"into one parameter that dropout cannot be applied to; set --lora-dropout 0, or "
                f"choose lora_targets among {lora_targets.last_names(linear)}"
            ) from None
        raise SettingError(
            f"lora_targets {', '.join(names)} do not fit the model, whose linear modules are "
            f"{lora_targets.last_names(linear)} ({str(error).splitlines()[0][:200]})"
        ) from None


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Put the saved adapter in `folder` on `model`, in evaluation mode.

    Raises:
        InputError: it is no plain LoRA adapter, whose settings may name code; or is damaged.
    """
    try:
        config = json.loads((Path(folder) / ADAPTER_FILES[0]).read_bytes())
        if config["peft_type"] != "LORA" or config.get("megatron_config"):
            raise ValueError("it is no plain LoRA adapter")
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except Exception as error:  # PEFT and safetensors raise kinds of their own
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the adapter in {folder} cannot be used: {reason}") from error


def put_weights(model: PeftModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give the adapter of `model` the weights of an adapter's file.

    Raises:
        InputError: one is missing, has no place in the model, or is of another shape; names it.
    """
    on_meta = next(model.parameters()).is_meta
    try:
        result: Any = set_peft_model_state_dict(model, dict(tensors), low_cpu_mem_usage=on_meta)
    except RuntimeError as error:  # of shape; torch gives a headline, then a line for each
        reason = str(error).splitlines()[1].strip().replace("torch.Size", "")
        raise InputError(f"the adapter's weights do not fit the model: {reason}") from None
    for name in result.unexpected_keys:
        raise InputError(f"the adapter's weight {parameter_name(name)} has no place in the model")
    for name in result.missing_keys:  # the base model's own are among them
        if ".lora_" in name:
            raise InputError(f"the adapter's weights lack {parameter_name(name)}")


def adapter_files(model: PeftModel) -> dict[str, bytes]:
    """The adapter as PEFT saves it: content by file name, the same in every process."""
    with scratch.folder() as folder:
        model.save_pretrained(str(folder))
        files = {name: (folder / name).read_bytes() for name in ADAPTER_FILES}
    config = json.loads(files["adapter_config.json"])
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # PEFT holds a set, whose order is a process's own
    files["adapter_config.json"] = json.dumps(config, indent=2, sort_keys=True).encode()
    return files


def parameter_name(name: str, adapter: str = "default") -> str:
    """A LoRA parameter's name without wrappers and adapter name, as files hold it."""
    for wrapper in ("module.", "base_model.model."):
        name = name.removeprefix(wrapper)
    return name.replace(f".{adapter}.weight", ".weight")


def lora_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """LoRA parameters by the name that files hold them under."""
    return {
        parameter_name(name): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }


Betas = tuple[float, float]
BETAS: Betas = (0.9, 0.999)
"""AdamW's decay rates of the moments: torch's, Trainer's and LESS's."""

Moments = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""AdamW's first and second moments of each LoRA parameter, float32, in its shape."""


def moments_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Moments:
    """AdamW's moments after training."""
    state: dict[Any, Any] = optimizer.state
    return {
        name: (state[p]["exp_avg"].float().cpu(), state[p]["exp_avg_sq"].float().cpu())
        for name, p in lora_parameters(model).items()
    }


def moments_to_tensors(moments: Moments) -> dict[str, torch.Tensor]:
    """Moments as one flat dictionary, as a safetensors file holds them."""
    flat = {}
    for name, (first, second) in moments.items():
        flat[f"exp_avg.{name}"], flat[f"exp_avg_sq.{name}"] = first, second
    return flat


def moments_from_tensors(flat: dict[str, torch.Tensor], model: torch.nn.Module) -> Moments:
    """Moments for the LoRA parameters of `model`.

    Raises:
        InputError: a parameter has no moments, or moments of another shape; names it.
    """
    moments: Moments = {}
    for name, parameter in lora_parameters(model).items():
        pair = flat.get(f"exp_avg.{name}"), flat.get(f"exp_avg_sq.{name}")
        for moment in pair:
            if moment is None:
                raise InputError(f"the AdamW moments lack the adapter's parameter {name}")
            if moment.shape != parameter.shape:
                raise InputError(
                    f"the AdamW moments of {name} have shape {list(moment.shape)}, but the "
                    f"adapter's parameter has {list(parameter.shape)}: they are of another adapter"
                )
        moments[name] = pair  # type: ignore[assignment]
    return moments
