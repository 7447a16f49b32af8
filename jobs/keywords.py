"""The settings of commands as keyword arguments, for type checkers.

Each class repeats the names and types of a settings class in `g2is_ray.config` or
`g2is_ray.selector.methods`, which has defaults and help texts. A test keeps the names and types
equal. Lists may be any sequence, and a selector may be a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from g2is_ray.selector.interface import Selector


class ModelKeywords(TypedDict, total=False):
    """Keywords of `ModelSettings`."""

    model: str
    trust_remote_code: bool
    template_date: str
    dtype: Literal["auto", "float32", "bfloat16"]
    quantization: Literal["none", "8bit", "4bit"]


class PoolKeywords(TypedDict, total=False):
    """Keywords of `PoolSettings`."""

    pool: Sequence[str]
    append: Sequence[str]
    format: str


class TargetKeywords(TypedDict, total=False):
    """Keywords of `TargetSettings`."""

    target: Mapping[str, str]
    test: Mapping[str, str]
    max_target_rows: int


class ReadKeywords(TypedDict, total=False):
    """Keywords of `ReadSettings`."""

    source_field: str
    max_tokens: int
    supervise: Literal["all", "last"]
    max_rejected: float
    part_rows: int


class SeedKeywords(TypedDict, total=False):
    """Keywords of `SeedSettings`."""

    seed: int


class RedoKeywords(TypedDict, total=False):
    """Keywords of `RedoSettings`."""

    redo: Sequence[str]


class LoraKeywords(TypedDict, total=False):
    """Keywords of `LoraSettings`."""

    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_targets: Sequence[str]


class WarmupKeywords(TypedDict, total=False):
    """Keywords of `WarmupSettings`."""

    warmup_fraction: float
    warmup_epochs: int
    warmup_learning_rate: float
    warmup_batch_size: int
    checkpoints: int
    warmup_from: Sequence[str]


class GradientKeywords(TypedDict, total=False):
    """Keywords of `GradientSettings`."""

    projection: Literal["sparse", "rademacher", "none"]
    projection_dim: int
    lora_layers: str


class GraphKeywords(TypedDict, total=False):
    """Keywords of `GraphSettings`."""

    features: Literal["gradients", "embeddings"]
    neighbors: int
    center: bool
    graph: str
    recall: float


class SelectorKeywords(TypedDict, total=False):
    """Keywords of `SelectorSettings`."""

    selector: str | type[Selector]
    budget_tokens: int
    allow_overlap: bool
    subtask_field: str


class WalkKeywords(TypedDict, total=False):
    """Keywords of `WalkSettings`."""

    fraction: float
    delta: float
    explained_variance: float
    pca: Literal["centered", "uncentered"]
    orient: bool
    within: float
    on_exhausted: Literal["stop", "restart"]


class JointKeywords(TypedDict, total=False):
    """Keywords of `JointSettings`."""

    joint: bool
    target_weight: Mapping[str, float]


class BaselineKeywords(TypedDict, total=False):
    """Keywords of `ComparisonSettings`."""

    baselines: Sequence[str | type[Selector]]


class TuneKeywords(TypedDict, total=False):
    """Keywords of `TuneSettings`."""

    tune_epochs: int
    tune_learning_rate: float
    tune_batch_size: int


class EvaluateKeywords(TypedDict, total=False):
    """Keywords of `EvaluateSettings`."""

    max_new_tokens: int
    exact_match_rows: int


class ExecutionKeywords(TypedDict, total=False):
    """Keywords of `ExecutionSettings`."""

    address: str
    accelerator: Literal["auto", "gpu", "cpu"]
    workers: int
    spot_patience_seconds: int
    train_workers: int
    memory_bytes: int
    batch_tokens: int | Literal["auto"]
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"]
    compile: bool
    gradient_checkpointing: bool
    micro_batch_size: int
    report_to: Sequence[Literal["tensorboard", "wandb", "mlflow", "trackio"]]


class MethodKeywords(TypedDict, total=False):
    """Keywords of `CompareSettings`."""

    methods: Sequence[str | type[Selector]]
    seeds: Sequence[int]
    reference: str


class RunArguments(
    ModelKeywords,
    PoolKeywords,
    TargetKeywords,
    ReadKeywords,
    SeedKeywords,
    RedoKeywords,
    LoraKeywords,
    WarmupKeywords,
    GradientKeywords,
    GraphKeywords,
    SelectorKeywords,
    WalkKeywords,
    JointKeywords,
    BaselineKeywords,
    TuneKeywords,
    EvaluateKeywords,
    ExecutionKeywords,
    total=False,
):
    """Settings of the command run, and `preset`."""

    preset: Literal["recommended", "paper"]


class SelectArguments(
    TargetKeywords,
    GraphKeywords,
    SelectorKeywords,
    WalkKeywords,
    JointKeywords,
    BaselineKeywords,
    SeedKeywords,
    RedoKeywords,
    total=False,
):
    """Settings of the command select, and `preset`."""

    preset: Literal["recommended", "paper"]


class CompareArguments(
    ModelKeywords,
    RedoKeywords,
    TargetKeywords,
    MethodKeywords,
    GraphKeywords,
    SelectorKeywords,
    WalkKeywords,
    LoraKeywords,
    TuneKeywords,
    EvaluateKeywords,
    ExecutionKeywords,
    total=False,
):
    """Settings of the command compare, and `preset`."""

    preset: Literal["recommended", "paper"]
