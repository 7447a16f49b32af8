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
SELECTORS = (
    "facility-location",
    WALK,
    "random",
    "less",
    "less-round-robin",
    "gist",
    "graph-diverse",
    "rds",
    "tfidf",
    "bm25",
)
"""Selectors that come with g2is-ray; `registry` has their classes."""

_OWN_SELECTOR = re.compile(r"[^:=,]+:[A-Za-z_]\w*")


def is_own(selector: str) -> bool:
    """Whether a selector is a user's own, named as FILE.py:CLASS or MODULE:CLASS."""
    return _OWN_SELECTOR.fullmatch(selector) is not None


def _check_selector(name: str) -> str:
    if name in SELECTORS or is_own(name):
        return name
    raise ValueError(f"should be {', '.join(SELECTORS)}, or FILE.py:CLASS for one of your own")


def _check_date(date: str) -> str:
    if date:
        try:
            datetime.date.fromisoformat(date)
        except ValueError:
            raise ValueError("should be a day as YYYY-MM-DD") from None
    return date


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelSettings:
    """Model"""

    model: Text
    """Hugging Face name or local directory of the causal language model to tune."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model; leave it off unless you trust the authors."""
    template_date: Annotated[str, AfterValidator(_check_date)] = ""
    """Date for chat templates that write one, as YYYY-MM-DD; if not given, the day on which the
    pool is read."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the base weights; auto is bfloat16 on a GPU and float32 on a CPU."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Load the base weights in 8 or 4 bits (bitsandbytes). This takes half or a quarter of the
    memory, is slower, and changes the gradients, most of all those of a small model. Adapters keep
    the number type of dtype."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ReadSettings:
    """Reading rows"""

    source_field: str = "source"
    """Column with a row's origin, for the report; selectors never read it."""
    max_tokens: Count = 2048
    """Maximum tokens of an example; longer ones are cut on the right. Time grows with it."""
    supervise: Literal["all", "last"] = "all"
    """Assistant turns to train on: all, or the last one of each conversation. Turns that their row
    excludes (weight: 0, train: false) are never trained on."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Maximum fraction of unreadable rows; reading stops above it."""
    part_rows: Count = 4096
    """Rows of a part, the unit of work and of resuming; a fault loses at most one part."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PoolSettings:
    """Pool"""

    pool: Annotated[tuple[str, ...], Field(min_length=1)]
    """Candidates: JSONL, JSON, Parquet or Arrow files, globs, directories, URLs, or
    hf://org/name[[:config]:split]."""
    append: tuple[str, ...] = ()
    """More candidates for a pool that is read already, given as for pool. Gradients are computed
    for the new rows only, the graph is extended, and selections are recomputed."""
    format: str = "auto"
    """Schema of the pool's rows: messages, prompt-completion, alpaca or sharegpt; auto detects the
    schema from each row's columns."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TargetSettings:
    """Targets and tests"""

    target: dict[str, str] = dataclasses.field(default_factory=dict)
    """NAME=FILE, validation rows of the domain that you select for; may be repeated."""
    test: dict[str, str] = dataclasses.field(default_factory=dict)
    """NAME=FILE, test rows of the target NAME, never used to select; may be repeated."""
    max_target_rows: Count = 5000
    """Maximum rows of a target; a larger one would cost as much as a pool."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraSettings:
    """LoRA adapter"""

    lora_r: Count = 128
    """LoRA rank. A module's gradient has r x (in + out) numbers; cost grows slowly with r."""
    lora_alpha: Count = 512
    """LoRA scale; updates are multiplied by alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout on the adapter's input in training; gradients are computed without dropout."""
    lora_targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("auto",)
    """Linear modules that get an adapter, by name; all-linear; or auto, the projections of the
    attention: q_proj, k_proj, v_proj and o_proj in most models."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WarmupSettings:
    """Warm-up"""

    warmup_fraction: Share = 0.05
    """Fraction of the pool, drawn at random, that the adapter is warmed up on."""
    warmup_epochs: Count = 4
    """Passes over the warm-up rows."""
    warmup_learning_rate: Positive = 2e-5
    """Peak learning rate of the warm-up (linear schedule)."""
    warmup_batch_size: Annotated[int, Field(ge=0)] = 0
    """Rows per optimizer step; 0 means 128, or a tenth of fewer than 1,280 rows."""
    checkpoints: Count = 1
    """Number of evenly spaced adapters of the warm-up at which gradients are computed, weighted by
    learning rate as in LESS. Each costs a whole pass over the pool."""
    warmup_from: tuple[str, ...] = ()
    """Local checkpoint folders of a Hugging Face Trainer, in order of training, which replace the
    warm-up. Each holds adapter_config.json, adapter_model.safetensors (or .bin) and optimizer.pt.
    Gradients use the rank, alpha and modules of these adapters; lora_* settings are for tuning."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GradientSettings:
    """Gradients"""

    projection: Literal["sparse", "rademacher", "none"] = "sparse"
    """sparse: one pass over the gradient. rademacher: dense signs, with the same variance for
    projection_dim times the work. none: keep every number of a row's gradient, 2 bytes each."""
    projection_dim: Annotated[int, Field(ge=2)] = 8192
    """Dimensions of projected gradients; a row takes 2 bytes x this on disk."""
    lora_layers: Annotated[str, Field(pattern=r"^(all|last:[1-9]\d*)$")] = "all"
    """Layers whose adapters have gradients: all, or last:N, where the backward pass ends early."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GraphSettings:
    """Features and graph"""

    features: Features = "gradients"
    """Features that graph and selectors compare rows by: gradients, or embeddings, which are
    weighted means of the base model's last hidden states and need neither a warm-up nor a backward
    pass."""
    neighbors: Count = 32
    """Neighbors of each row in the kNN graph."""
    center: bool = True
    """Subtract the pool's mean from the pool's features before normalizing. The mean is subtracted
    from a target's embeddings too, but not from a target's gradients, which lack momentum."""
    graph: Text = "auto"
    """Search for neighbors: exact; ivf, which probes the lists nearest to a row; auto, which is
    exact if that takes seconds or most lists would be probed, and else ivf; or a FAISS index such
    as HNSW32 or IVF4096,Flat, which holds the whole pool in the memory of one worker."""
    recall: Annotated[float, Field(gt=0, lt=1)] = 0.97
    """Fraction of a row's exact neighbors that ivf must find on average, measured on a sample."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WalkSettings:
    """Budget and walk"""

    fraction: Share = 0.01
    """Fraction of the pool to select, in (0, 1]."""
    delta: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Minimum fraction of the previous |cos(sum of picks, component)| that a step must keep."""
    explained_variance: Share = 0.5
    """Fraction of the target's variance that the principal components must explain."""
    pca: Literal["centered", "uncentered"] = "uncentered"
    """Subtract the mean target gradient before computing components, or not (paper: centered)."""
    orient: bool = True
    """Flip components to point towards the mean target gradient (paper: no)."""
    within: Share = 1.0
    """Fraction of the pool to walk in: the rows with the largest cosine to the mean target
    gradient. A smaller fraction drifts less and picks more like the selector less (paper: 1)."""
    on_exhausted: Literal["stop", "restart"] = "restart"
    """If no row qualifies, stop below the budget (paper), or restart at the next anchor."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SelectorSettings:
    """Selection"""

    selector: Annotated[str, AfterValidator(_check_selector)] = "facility-location"
    """Selector: facility-location, walk, random, less, less-round-robin, gist, graph-diverse, rds,
    tfidf, bm25, or a class of your own as FILE.py:CLASS or MODULE:CLASS, whose code is run."""
    budget_tokens: Annotated[int, Field(ge=0)] = 0
    """Budget in supervised tokens, in place of fraction; 0 means fraction. The loss is on
    supervised tokens only, so selections of equal budgets train on equally many tokens. Picking
    ends before the first row that does not fit."""
    allow_overlap: bool = False
    """Also select rows of the pool that are like test rows, although losses then measure what the
    model has memorized. By default such rows are left out; `g2is ingest` lists them."""
    subtask_field: Text = "subtask"
    """Column with the subtask of a target's row. less, gist, graph-diverse and facility-location
    take the mean within a subtask and the maximum over subtasks. A target without this column is
    one subtask."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JointSettings:
    """Joint selection"""

    joint: bool = False
    """Select once for all targets together, under one budget; the selection is named joint."""
    target_weight: dict[str, Positive] = dataclasses.field(default_factory=dict)
    """NAME=WEIGHT, a target's part of a joint budget, relative to the other targets; 1 if not
    given; may be repeated."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TuneSettings:
    """Tuning"""

    tune_epochs: Count = 3
    """Passes over the selected rows."""
    tune_learning_rate: Positive = 1e-4
    """Peak learning rate of tuning (cosine schedule)."""
    tune_batch_size: Count = 16
    """Rows per optimizer step."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateSettings:
    """Evaluation"""

    max_new_tokens: Count = 256
    """Maximum tokens of a generated answer; greedy decoding takes most of the evaluation's time."""
    exact_match_rows: Annotated[int, Field(ge=0)] = 200
    """Number of test rows, from the first, on which exact match is measured; 0 skips it."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SeedSettings:
    """Randomness"""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the warm-up's draw, the adapter, the data order, the projection and random."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RedoSettings:
    """Recomputing"""

    redo: tuple[str, ...] = ()
    """Stages to remove and recompute, with every stage made from them: pool, warmup, gradients,
    graph, targets/T, selections/T, tuned/T, evaluations/T, or any other that `g2is status` lists.
    Leave it out to resume after an interruption."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExecutionSettings:
    """Execution: how the work is run; never what a stage writes"""

    address: str = ""
    """Ray cluster: auto, host:port, or local, which starts one; if not given, RAY_ADDRESS or local.
    For submit, the URL of the cluster's dashboard, such as http://127.0.0.1:8265."""
    accelerator: Literal["auto", "gpu", "cpu"] = "auto"
    """Device of the workers; auto uses GPUs if the cluster has any now, gpu waits for them."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Number of workers for gradients and evaluation; 0 means one per GPU, or one without GPUs."""
    spot_patience_seconds: Annotated[int, Field(ge=0)] = 600
    """Seconds that a GPU worker waits for a spot machine before it requests an on-demand one, which
    costs two to three times as much; 0 means no limit. The node types must offer 1 of the resource
    spot or on_demand."""
    train_workers: Count = 1
    """Number of data-parallel workers for warm-up and tuning."""
    memory_bytes: Annotated[int, Field(ge=2**28)] = 4 * 2**30
    """Memory of a graph worker, on its GPU or else of the machine; larger pools are searched in
    groups of parts that fit."""
    batch_tokens: Annotated[int, Field(ge=0)] | Literal["auto"] = 0
    """Maximum of longest row x rows in a batch, in tokens; memory grows with it. 0 means 8192 on a
    GPU and 512 on a CPU. auto increases it while that is faster; the last digits of gradients then
    differ between runs."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel by its name in transformers; auto is the default of transformers."""
    compile: bool = False
    """Compile the parts of layers without an adapter (torch.compile) for gradients. Each worker
    takes a minute or two longer to start and is 0 to 10% faster on a CPU; not measured on a GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations for gradients: a third slower, with much less memory."""
    micro_batch_size: Count = 4
    """Rows per forward pass of training; gradients are accumulated up to a whole batch."""
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
"""`paper` is the procedure as published; `recommended` is the best one measured so far
(docs/evidence.md). Settings of the walk have an effect only if the walk is the selector."""

T = TypeVar("T")


def preset_values(preset: object) -> dict[str, Any]:
    """The settings that a preset gives; none if no preset is asked for.

    Raises:
        SettingError: there is no such preset.
    """
    if preset is None:
        return {}
    if preset not in list(PRESETS):  # which need not be hashable
        raise SettingError(f"preset should be {' or '.join(PRESETS)}, got {preset!r}")
    return PRESETS[str(preset)]


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
                remedy = f"give {flag(name)}. {fields[name].description}"
                problems["missing"].append(f"{name} is not set: {remedy}")
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
            merged[name] = list(value) if isinstance(value, tuple) else value
    return merged


def flag(name: str) -> str:
    """Command line flag of the setting `name`: max_tokens -> --max-tokens."""
    return "--" + name.replace("_", "-")
