"""LoRA tuning with transformers' Trainer: the one path of warm-up and tuning.

It needs no Ray; `actors/trainer.py` runs it inside Ray Train.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)

from g2is_ray.chat.conversation import COLUMNS, Conversation
from g2is_ray.chat.encoder import ChatEncoder, Encoded
from g2is_ray.config import ExecutionSettings, TrainingPlan
from g2is_ray.data.examples import ExampleSet
from g2is_ray.errors import SettingError
from g2is_ray.features import dry_run
from g2is_ray.models import checkpoints, loading
from g2is_ray.models.batches import pad
from g2is_ray.models.rope import regimes, require_one_regime
from g2is_ray.training import trackers
from g2is_ray.workspace.workspace import STAGE_RECEIPT, Workspace

log = logging.getLogger(__name__)

_CHECKPOINTS = 5  # evenly spaced per training; a failure repeats at most one interval
_LOG_LINES = 50
_WARMUP_SHARE = 0.03  # of the optimizer steps, while the learning rate rises


class TunedModel:
    """One training: model, adapter, rows and Trainer.

    Args:
        rows: pool rows to train on.
        world_size: data-parallel workers that share each batch.
        scratch: local folder for Trainer's own checkpoints.
    """

    def __init__(
        self,
        workspace: Workspace,
        stage: str,
        plan: TrainingPlan,
        rows: Sequence[int],
        execution: ExecutionSettings,
        *,
        scratch: Path,
        world_size: int = 1,
    ) -> None:
        self._workspace, self._stage, self._plan = workspace, stage, plan
        self._began = time.monotonic()
        self._report_to = execution.report_to
        trackers.require_installed(execution.report_to)
        tokenizer = loading.load_tokenizer(plan.model)
        encoder = ChatEncoder(
            tokenizer, max_tokens=plan.max_tokens, template_date=plan.model.template_date
        )
        held = ExampleSet(workspace, "pool").take(rows, COLUMNS)
        self._encoded = [encoder.encode(Conversation.from_columns(row)) for row in held]
        device = loading.default_device()
        base = loading.load_base(plan.model, device, execution.attention)
        if plan.checkpoints:  # gradients of the adapter will be computed
            dry_run.check_gradients(base, plan.lora)
        lengths = [len(one.input_ids) for one in self._encoded]
        if len({regimes(base).of(length) for length in lengths}) > 1:
            execution = dataclasses.replace(execution, micro_batch_size=1)
        if device.type == "cuda":  # activations of long rows would not fit into memory
            base.gradient_checkpointing_enable()
            base.enable_input_require_grads()
        model = loading.add_adapter(base, plan.lora, plan.seed)
        items: Sequence[Encoded] | Sequence[list[Encoded]] = self._encoded
        if plan.steps_per_epoch:
            groups = spread_evenly(lengths, plan.steps_per_epoch, execution.micro_batch_size)
            for group in groups:
                require_one_regime([lengths[row] for row in group], regimes(base))
            items = [[self._encoded[row] for row in group] for group in groups]
        micro, accumulated = _batching(plan, len(items), execution, world_size)
        self.trainer = _Trainer(
            model=model,
            args=_arguments(
                plan, len(rows), execution, scratch, stage, micro=micro, accumulated=accumulated
            ),
            train_dataset=items,
            data_collator=_Collator(tokenizer),
            callbacks=[_MetricsFile(workspace, stage)],
        )
        trackers.log_to(
            self.trainer, stage, workspace.storage.writable_folder(f"{stage}/tensorboard")
        )
        if plan.checkpoints:
            callback = _EarlierCheckpoints(workspace, stage, plan.checkpoints, self.checkpoint)
            self.trainer.add_callback(callback)

    def train(self, checkpoint: str | None = None) -> None:
        """Train, from the start or from a folder that holds Trainer's checkpoint."""
        with trackers.run_ended(self._report_to):
            self.trainer.train(resume_from_checkpoint=checkpoint)

    def checkpoint(self, number: int) -> dict[str, bytes]:
        """Return the files of checkpoint `number`, from the present adapter and moments."""
        assert self.trainer.optimizer is not None
        moments = loading.moments_of(self.model(), self.trainer.optimizer)
        return checkpoints.files(number, loading.adapter_files(self.model()), moments)

    def facts(self) -> dict[str, Any]:
        """Return the facts of a finished training for its receipt."""
        state = self.trainer.state
        supervised = sum(one.supervised_tokens for one in self._encoded)
        return {
            "rows": len(self._encoded),
            "steps": state.global_step,
            "train_tokens": supervised * self._plan.epochs,
            "seed": self._plan.seed,
            "train_loss": _last_loss(state),
            "device": self.trainer.args.device.type,
            "seconds": round(time.monotonic() - self._began, 3),
        }

    def save(self) -> dict[str, Any]:
        """Write the adapter, or the checkpoints that the plan asks for, and the receipt."""
        state, count = self.trainer.state, self._plan.checkpoints
        facts = self.facts()
        if count:
            earlier = [name for k in range(1, count) for name in checkpoints.file_names(k)]
            files = {f: self._workspace.storage.read_bytes(f"{self._stage}/{f}") for f in earlier}
            files |= self.checkpoint(count)
            facts["learning_rates"] = mean_learning_rates(
                self.trainer.args, checkpoints.ends(state.max_steps, count)
            )
        else:
            held = loading.adapter_files(self.model())
            files = {f"adapter/{name}": data for name, data in held.items()}
        files["metrics.jsonl"] = _metrics(state)
        return self._workspace.stage(self._stage).commit(STAGE_RECEIPT, files, facts)

    def model(self) -> Any:
        """Return the model with its adapter in its present state."""
        return self.trainer.accelerator.unwrap_model(self.trainer.model)


def spread_evenly(lengths: Sequence[int], steps: int, most: int) -> list[NDArray[np.intp]]:
    """Split rows into groups, so that an epoch has exactly `steps` optimizer steps.

    A group is one forward pass: at most `most` + 1 rows of similar lengths, so there is little
    padding. Group sizes differ by one at most, and each step accumulates the same number of groups.
    The order of the groups is drawn again for each epoch.

    Args:
        lengths: of the rows, in tokens.

    Raises:
        SettingError: there are fewer rows than steps.
    """
    rows = len(lengths)
    if rows < steps:
        raise SettingError(
            f"{rows} rows cannot be spread over {steps} optimizer steps: raise tune_batch_size, so "
            "that there are fewer steps, or the budget"
        )
    accumulated = min(math.ceil(rows / (steps * most)), rows // steps)
    return np.array_split(np.argsort(lengths, kind="stable"), steps * accumulated)


def _batching(
    plan: TrainingPlan, items: int, execution: ExecutionSettings, world_size: int
) -> tuple[int, int]:
    """Return the items per forward pass of a worker, and the forward passes per step."""
    if plan.steps_per_epoch:
        return 1, items // plan.steps_per_epoch
    share = max(1, plan.batch_size // world_size)
    micro = max(n for n in range(1, min(share, execution.micro_batch_size) + 1) if share % n == 0)
    return micro, share // micro


def _arguments(
    plan: TrainingPlan,
    rows: int,
    execution: ExecutionSettings,
    scratch: Path,
    stage: str,
    *,
    micro: int,
    accumulated: int,
) -> TrainingArguments:
    steps = plan.steps(rows)
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(scratch),
        run_name=f"{stage} in {scratch.name}",
        num_train_epochs=plan.epochs,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=plan.schedule,
        warmup_steps=int(_WARMUP_SHARE * steps),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulated,
        ddp_find_unused_parameters=False,
        weight_decay=0.0,
        optim="adamw_torch",
        seed=plan.seed,
        use_cpu=not on_gpu,
        bf16=on_gpu,
        logging_steps=max(1, steps // _LOG_LINES),
        save_strategy="steps",
        save_steps=max(1, math.ceil(steps / _CHECKPOINTS)),
        save_total_limit=1,
        report_to=list(execution.report_to) or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        disable_tqdm=True,
    )


def _schedule(
    arguments: TrainingArguments, optimizer: torch.optim.Optimizer, steps: int
) -> LambdaLR:
    """Return a schedule whose learning rate is above zero at every optimizer step.

    A schedule of transformers starts at zero, so its first step changes nothing, and a training
    of one step would have no effect. This schedule has one more step and skips the first.
    """
    theirs: Any = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(steps) + 1,
        num_training_steps=steps + 1,
    )
    share = theirs.lr_lambdas[0]  # the same for all groups of parameters
    return LambdaLR(optimizer, lambda step: share(step + 1))


class _Trainer(Trainer):
    """transformers' Trainer with a learning rate above zero at every step."""

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        if self.lr_scheduler is None:
            chosen = optimizer or self.optimizer
            assert chosen is not None
            self.lr_scheduler = _schedule(self.args, chosen, num_training_steps)
            self._created_lr_scheduler = True  # so that the next call of `train` makes another one
        return self.lr_scheduler


class _Collator:
    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pad_id = tokenizer.pad_token_id or 0

    def __call__(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        examples = items[0] if isinstance(items[0], list) else items  # a group, see spread_evenly
        ids, labels = pad(examples, self._pad_id)
        return {"input_ids": ids, "labels": labels}  # no mask: see `Batch`


def mean_learning_rates(arguments: TrainingArguments, ends: Sequence[int]) -> list[float]:
    """Return the mean learning rate of the steps between each two of `ends`.

    It is computed from the schedule, not from the log, so it is complete after a resume too.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
    schedule = _schedule(arguments, optimizer, ends[-1])
    rates = []
    for _ in range(ends[-1]):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    starts = [0, *ends[:-1]]
    return [statistics.fmean(rates[a:b]) for a, b in zip(starts, ends, strict=True)]


class _EarlierCheckpoints(TrainerCallback):
    """Writes all checkpoints but the last one when training reaches their steps.

    It does so at a step's end, before Trainer saves its state of that step. So a resumed training
    either finds a checkpoint or reaches its step again.
    """

    def __init__(
        self,
        workspace: Workspace,
        stage: str,
        count: int,
        checkpoint: Callable[[int], dict[str, bytes]],
    ) -> None:
        self._workspace, self._stage = workspace, stage
        self._count, self._checkpoint = count, checkpoint
        self._numbers: dict[int, int] = {}  # by step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        steps = checkpoints.ends(state.max_steps, self._count)[:-1]
        self._numbers = {step: number for number, step in enumerate(steps, start=1)}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        number = self._numbers.get(state.global_step)
        if number and state.is_world_process_zero:
            for name, data in self._checkpoint(number).items():
                self._workspace.storage.write_bytes(f"{self._stage}/{name}", data)


class _MetricsFile(TrainerCallback):
    """Updates `metrics.jsonl` in the workspace, also after a resume."""

    def __init__(self, workspace: Workspace, stage: str) -> None:
        self._workspace, self._stage = workspace, stage

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        if state.is_world_process_zero:
            self._workspace.storage.write_bytes(f"{self._stage}/metrics.jsonl", _metrics(state))


def _metrics(state: TrainerState) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in state.log_history).encode()


def _last_loss(state: TrainerState) -> float | None:
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return losses[-1] if losses else None
