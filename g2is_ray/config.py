"""Settings: one frozen dataclass per stage, one source of defaults, help text and checks.

A field's docstring is its help text on the command line and its entry in the
documentation; pydantic checks types and bounds when the object is built, so a wrong
value dies at start. A YAML file and the flags use the same names
(`max_tokens` and `--max-tokens`).
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from g2is_ray.errors import SettingError

STRICT = pydantic.ConfigDict(use_attribute_docstrings=True, extra="forbid", allow_inf_nan=False)

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, lt=2**48)]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]

Features = Literal["gradients", "embeddings"]

WALK, PAPER = "walk", "paper"


def _check_date(date: str) -> str:
    if date:
        try:
            datetime.date.fromisoformat(date)
        except ValueError:
            raise ValueError("should be a day as YYYY-MM-DD") from None
    return date


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelSettings:
    model: Text
    """Hugging Face name or local directory of the causal LM to tune."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; leave off unless you trust its authors."""
    template_date: Annotated[str, AfterValidator(_check_date)] = ""
    """Day that the chat template is told, as YYYY-MM-DD; if not given, the day that the pool is
    read. Only templates that write a date ask for it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the base weights; auto is bfloat16 on GPUs and float32 on CPUs."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Base weights in 8 or 4 bits (bitsandbytes): half or a quarter of the memory, slower, and
    other gradients, very much so for a small model; adapters stay in the number type above."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ReadSettings:
    source_field: str = "source"
    """Column that labels a row's origin in the report; the selection never reads it."""
    max_tokens: Count = 2048
    """Longest example in tokens; longer ones are cut on the right. Time grows with it."""
    supervise: Literal["all", "last"] = "all"
    """Assistant turns to train on: all of them, or the last of a conversation only; never those
    that their row excludes (weight: 0, train: false)."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of unreadable rows that is put up with; above it, reading stops."""
    part_rows: Count = 4096
    """Rows of a part, the unit of work and of resume; at most this much is lost by a fault."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PoolSettings:
    pool: Annotated[tuple[str, ...], Field(min_length=1)]
    """Candidates: JSONL, JSON, Parquet or Arrow files, globs, directories, URLs, or
    hf://org/name[[:config]:split]."""
    append: tuple[str, ...] = ()
    """More candidates, as for pool, for a pool that is read already: gradients are taken of them
    alone, the graph is extended, and selections are made anew."""
    format: str = "auto"
    """Schema of the pool's rows: messages, prompt-completion, alpaca or sharegpt; auto tells it
    from each row's columns."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TargetSettings:
    target: dict[str, str] = dataclasses.field(default_factory=dict)
    """NAME=FILE, validation rows of the domain you care about; may be repeated."""
    test: dict[str, str] = dataclasses.field(default_factory=dict)
    """NAME=FILE, rows to measure the target NAME with, never used to select; may be repeated."""
    max_target_rows: Count = 5000
    """A larger target is refused: its gradients would cost as much as a pool's."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraSettings:
    lora_r: Count = 128
    """LoRA rank. Gradients are taken for r x (in + out) numbers a module; cost grows little."""
    lora_alpha: Count = 512
    """LoRA scale: updates are multiplied by alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout on the adapter's input while training; gradients are taken without it."""
    lora_targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("auto",)
    """Names of the linear modules of the language model that get an adapter; all-linear; or auto,
    its attention's projections: q_proj, k_proj, v_proj and o_proj in most models."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WarmupSettings:
    warmup_fraction: Share = 0.05
    """Share of the pool, drawn at random, that the adapter is warmed up on."""
    warmup_epochs: Count = 4
    """Passes over the warm-up rows."""
    warmup_learning_rate: Positive = 2e-5
    """Highest learning rate of the warm-up (linear schedule)."""
    warmup_batch_size: Annotated[int, Field(ge=0)] = 0
    """Rows per optimizer step; 0 means 128, or a tenth of the rows if they are fewer than 1,280."""
    checkpoints: Count = 1
    """Adapters of the warm-up, evenly spaced, that gradients are taken at, weighted by learning
    rate as LESS does; each costs a whole pass over the pool."""
    warmup_from: tuple[str, ...] = ()
    """Local checkpoint folders of a Hugging Face Trainer, in order of training, to take instead of
    warming up; each with adapter_config.json, adapter_model.safetensors (or .bin) and optimizer.pt.
    Gradients are of those adapters' rank, alpha and modules; lora_* settings shape tuning only."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GradientSettings:
    projection: Literal["sparse", "rademacher", "none"] = "sparse"
    """sparse: one pass over the gradient. rademacher: dense signs, the same spread of errors for
    projection_dim times the work. none: every LoRA number of a row is kept, 2 bytes each."""
    projection_dim: Annotated[int, Field(ge=2)] = 8192
    """Dimensions that gradients are projected to; disk is 2 bytes x this per row."""
    lora_layers: Annotated[str, Field(pattern=r"^(all|last:[1-9]\d*)$")] = "all"
    """Layers whose adapters count: all, or last:N, where the backward pass stops N layers down."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GraphSettings:
    features: Features = "gradients"
    """Features that graph and selectors compare rows by: gradients, or embeddings (weighted means
    of the base model's last hidden states), which need neither a warm-up nor a backward pass."""
    neighbors: Count = 32
    """Neighbors of each row in the kNN graph."""
    center: bool = True
    """Subtract the pool's mean from its features before normalizing, for graph and selectors. The
    mean is subtracted from a target's embeddings too, but not from its gradients, which lack the
    momentum in the pool's."""
    graph: Text = "auto"
    """Search for neighbors: exact; ivf, which probes the lists of rows nearest to a row; auto,
    exact if that takes seconds or if most lists would be probed; or a FAISS index such as HNSW32
    or IVF4096,Flat, which holds the whole pool in one worker's memory."""
    recall: Annotated[float, Field(gt=0, lt=1)] = 0.97
    """Share of a row's exact neighbors that ivf must find, on average over a sample of rows."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BudgetSettings:
    fraction: Share = 0.01
    """Share of the pool to select, in (0, 1]."""
    budget_tokens: Annotated[int, Field(ge=0)] = 0
    """Supervised tokens to select, in place of fraction; 0 means fraction. The loss is on
    supervised tokens alone, so equal budgets train equally much. Picking ends before the first row
    that does not fit."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WalkSettings:
    delta: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Minimum share of the previous |cos(sum of picks, component)| that a step must keep."""
    explained_variance: Share = 0.5
    """Principal components of the target are taken up to this share of its variance."""
    pca: Literal["centered", "uncentered"] = "uncentered"
    """Principal components with the target's mean gradient kept in (uncentered) or removed (paper:
    centered)."""
    orient: bool = True
    """Flip components to point towards the mean target gradient (paper: no)."""
    within: Share = 1.0
    """Walk only among this share of the pool, the rows with the largest cosine to the mean target
    gradient: the smaller, the less a walk drifts, and the more it picks as less does (paper: 1)."""
    on_exhausted: Literal["stop", "restart"] = "restart"
    """When nothing qualifies: stop short of the budget (paper), or restart at the next anchor."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JointSettings:
    joint: bool = False
    """Select once for all targets together, under one budget, as the selection named joint."""
    target_weight: dict[str, Positive] = dataclasses.field(default_factory=dict)
    """NAME=WEIGHT, how much of a joint budget a target gets, relative to the others; 1 if not
    given; may be repeated."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TuneSettings:
    tune_epochs: Count = 3
    """Passes over the selected rows."""
    tune_learning_rate: Positive = 1e-4
    """Highest learning rate of tuning (cosine schedule)."""
    tune_batch_size: Count = 16
    """Rows per optimizer step."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateSettings:
    max_new_tokens: Count = 256
    """Longest answer written for exact match, in tokens; greedy decoding is the slow part."""
    exact_match_rows: Annotated[int, Field(ge=0)] = 200
    """Test rows that exact match is measured on, the first ones; 0 leaves it out."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SeedSettings:
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the warm-up draw, adapter, data order, projection and random baseline."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RedoSettings:
    redo: tuple[str, ...] = ()
    """Stages to remove and recompute, with all that was made from them: pool, warmup, gradients,
    graph, targets/T, selections/T, tuned/T, evaluations/T, or any other that `g2is status` names.
    It is asked for once: leave it out to go on after an interruption."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExecutionSettings:
    """How the work is run; never what a stage writes."""

    address: str = ""
    """Ray cluster: auto, host:port, or local to start one; unset means RAY_ADDRESS or local.
    For submit, the URL of the cluster's dashboard, such as http://127.0.0.1:8265."""
    accelerator: Literal["auto", "gpu", "cpu"] = "auto"
    """What workers run on: auto takes GPUs if the cluster has any now; gpu waits for them."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Gradient and evaluation workers; 0 means one per GPU, or one where there is none."""
    spot_patience_seconds: Annotated[int, Field(ge=0)] = 600
    """Seconds that a GPU worker waits for a spot machine before it asks for an on-demand one, at
    two to three times the price; 0 means for ever. Needs node types that offer the resources
    spot and on_demand, 1 of either."""
    train_workers: Count = 1
    """Data-parallel workers of warm-up and tuning."""
    memory_bytes: Annotated[int, Field(ge=2**28)] = 4 * 2**30
    """What a graph worker may take, of its GPU's memory or of the machine's; larger pools are
    searched in groups of parts that fit."""
    token_budget: Annotated[int, Field(ge=0)] | Literal["auto"] = 0
    """Longest row x rows of a batch; memory grows with it. 0 means 8192 on a GPU, 512 on a CPU;
    auto tries larger ones while they pay, at the price of last digits that differ between runs."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel, as transformers names them; auto is transformers' own choice."""
    compile: bool = False
    """Compile the parts of layers that carry no adapter (torch.compile) while taking gradients:
    a minute or two at the start of each worker, for 0 to 10 % on a CPU; not measured on a GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations while taking gradients: a third slower, much less memory."""
    micro_batch_size: Count = 4
    """Rows that training holds in memory at once; batches are accumulated from these."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Trackers that training reports to: tensorboard, wandb, mlflow, trackio."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingPlan:
    """Everything that decides what a training gives: the settings of warm-up or of tuning."""

    model: ModelSettings
    lora: LoraSettings
    epochs: int
    learning_rate: float
    batch_size: int  # rows per optimizer step, over all workers
    schedule: Literal["linear", "cosine"]
    max_tokens: int
    seed: int
    checkpoints: int = 0  # adapters to keep with AdamW's moments; 0: the last one, without
    steps_per_epoch: int = 0  # over which rows are spread evenly; 0: batch_size rows a step

    def steps(self, rows: int) -> int:
        """Optimizer steps of the whole training."""
        return (self.steps_per_epoch or math.ceil(rows / self.batch_size)) * self.epochs


PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {
        "selector": "facility-location",
        "features": "gradients",
        "center": True,
        "pca": "uncentered",
        "orient": True,
        "on_exhausted": "restart",
        "within": 1.0,
    },
    "paper": {
        "selector": WALK,
        "features": "gradients",
        "center": False,
        "pca": "centered",
        "orient": False,
        "on_exhausted": "stop",
        "within": 1.0,
    },
}
"""`paper` is the published procedure to the letter; `recommended` is the best that is known. Its
settings of the walk are for those who ask for one: docs/evidence.md."""

T = TypeVar("T")


def fields_of(classes: Iterable[type]) -> dict[str, pydantic.fields.FieldInfo]:
    """Every setting of `classes` by name, with its type, default and help text."""
    fields: dict[str, pydantic.fields.FieldInfo] = {}
    for cls in classes:
        fields.update(cls.__pydantic_fields__)  # type: ignore[attr-defined]
    return fields


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build settings of type `cls` from those of `values` that it knows.

    Raises:
        SettingError: a required value is missing, or one is of the wrong type or range.
    """
    built, problems = _validate(cls, values)
    if built is None:
        raise SettingError((problems["missing"] + problems["wrong"])[0])
    return built


def check(classes: Iterable[type], values: Mapping[str, Any]) -> None:
    """Refuse a value that can never work before any work is done; missing ones may come later.

    Raises:
        SettingError: a value is of the wrong type or range.
    """
    for cls in classes:
        for problem in _validate(cls, values)[1]["wrong"]:
            raise SettingError(problem)


def _validate(cls: type[T], values: Mapping[str, Any]) -> tuple[T | None, dict[str, list[str]]]:
    """The settings, or None and sentences on what is missing and what is wrong."""
    fields = fields_of([cls])
    given = {name: values[name] for name in fields if name in values}
    problems: dict[str, list[str]] = {"missing": [], "wrong": []}
    for name, value in given.items():
        if isinstance(value, bool) and fields[name].annotation is not bool:  # pydantic: 0 or 1
            problems["wrong"].append(_sentence(name, "should not be yes or no", value, fields))
    try:
        built = cls(**given)
    except pydantic.ValidationError as error:
        for one in error.errors():
            name = str(one["loc"][0])
            if one["type"].startswith("missing"):
                problems["missing"].append(f"{name} is not set: {fields[name].description}")
            else:
                reason = re.sub(r"^(Input|String|Tuple|Value error,) ", "", one["msg"])
                problems["wrong"].append(_sentence(name, reason, one["input"], fields))
        return None, problems
    return (None if problems["wrong"] else built), problems


def _sentence(
    name: str, reason: str, value: Any, fields: Mapping[str, pydantic.fields.FieldInfo]
) -> str:
    return f"{name} {reason}, got {value!r}: {fields[name].description}"


def as_dict(*settings: Any) -> dict[str, Any]:
    """The settings as plain values that JSON keeps as they are."""
    merged: dict[str, Any] = {}
    for one in settings:
        for name, value in dataclasses.asdict(one).items():
            merged[name] = [_plain(v) for v in value] if isinstance(value, tuple) else _plain(value)
    return merged


def _plain(value: Any) -> Any:
    """The value, or MODULE:CLASS in place of a class."""
    return f"{value.__module__}:{value.__name__}" if isinstance(value, type) else value


def flag(name: str) -> str:
    """Command line flag of the setting `name`: max_tokens -> --max-tokens."""
    return "--" + name.replace("_", "-")
