"""How adapters are warmed up and tuned: training plans from settings."""

from __future__ import annotations

from g2is_ray.config import (
    LoraSettings,
    ModelSettings,
    TrainingPlan,
    TuneSettings,
    WarmupSettings,
)

_LARGEST_BATCH = 128  # of a warm-up, as in LESS


def warmup_plan(
    model: ModelSettings,
    lora: LoraSettings,
    settings: WarmupSettings,
    *,
    rows: int,
    max_tokens: int,
    seed: int,
) -> TrainingPlan:
    """Return how an adapter is warmed up on a number of rows."""
    return TrainingPlan(
        model=model,
        lora=lora,
        epochs=settings.warmup_epochs,
        learning_rate=settings.warmup_learning_rate,
        batch_size=settings.warmup_batch_size or max(1, min(_LARGEST_BATCH, rows // 10)),
        schedule="linear",
        max_tokens=max_tokens,
        seed=seed,
        checkpoints=settings.checkpoints,
    )


def tuning_plan(
    model: ModelSettings, lora: LoraSettings, settings: TuneSettings, *, max_tokens: int, seed: int
) -> TrainingPlan:
    """Return how an adapter is tuned on any selection."""
    return TrainingPlan(
        model=model,
        lora=lora,
        epochs=settings.tune_epochs,
        learning_rate=settings.tune_learning_rate,
        batch_size=settings.tune_batch_size,
        schedule="cosine",
        max_tokens=max_tokens,
        seed=seed,
    )
