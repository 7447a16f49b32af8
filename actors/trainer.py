"""Training inside Ray Train: workers, checkpoints, resume."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train

from actors.connection.cluster import Share
from actors.pool.version_check import check_nodes
from actors.ray_internals import (
    CHECKPOINT_RECORD,
    interruptible_trainer,
    recorded_checkpoints,
)
from g2is_ray.config import ExecutionSettings, TrainingPlan
from g2is_ray.errors import G2isError, MissingError, WorkError, WorkspaceError
from g2is_ray.workspace import scratch
from g2is_ray.workspace.workspace import Workspace

log = logging.getLogger(__name__)

_CHECKPOINTS = "checkpoints"
_RESTARTS = 3  # of a training whose workers fail, each from the last checkpoint


def train(
    workspace: Workspace,
    stage: str,
    plan: TrainingPlan,
    rows: Sequence[int],
    execution: ExecutionSettings,
    share: Share,
) -> dict[str, Any]:
    """Train an adapter on pool rows and write it as `stage`; returns the stage's receipt.

    A training that was killed resumes from its last checkpoint.

    Raises:
        G2isError: model, adapter or rows cannot be used.
        WorkError: the workers failed too often, or nodes cannot train: see `check_nodes`.
    """
    run_name = stage.replace("/", "-").replace("@", "-vs-")
    folder = f"{_CHECKPOINTS}/{run_name}"
    # A stage that is new or was removed must not resume from checkpoints of an earlier training.
    if not workspace.storage.names(stage) or not _names_own_checkpoints(workspace, folder):
        workspace.storage.remove(folder)
    file_system, checkpoints = workspace.storage.arrow(_CHECKPOINTS)
    check_nodes(share.num_cpus, share.num_gpus)
    trainer = interruptible_trainer(
        train_loop_per_worker=_train_on_worker,
        train_loop_config={
            "url": workspace.storage.location(""),
            "stage": stage,
            "plan": plan,
            "rows": [int(row) for row in rows],
            "execution": execution,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=share.workers,
            use_gpu=share.num_gpus > 0,
            resources_per_worker={"CPU": share.num_cpus}
            | ({"GPU": share.num_gpus} if share.num_gpus else {}),
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as of Train v1
            name=run_name,
            storage_path=checkpoints,
            storage_filesystem=file_system,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            failure_config=ray.train.FailureConfig(max_failures=_RESTARTS),
        ),
    )
    try:
        result: Any = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise WorkError(
            f"{stage}: training failed {_RESTARTS + 1} times: {_reason(error)}; give the same "
            "command again to resume from the last checkpoint"
        ) from error
    if result.return_value:
        workspace.storage.remove(folder)
        raise G2isError(result.return_value)
    receipt = workspace.stage(stage).verified()
    if receipt is None:
        raise WorkError(f"{stage}: training ended without an adapter; give the same command again")
    workspace.storage.remove(folder)
    return receipt


def _names_own_checkpoints(workspace: Workspace, folder: str) -> bool:
    """Whether Ray Train's record of a training names only checkpoints in the training's folder.

    Ray Train removes the folders that its record names, and the workspace may not be trusted.
    """
    try:
        record = workspace.storage.read_bytes(f"{folder}/{CHECKPOINT_RECORD}").decode()
        names = recorded_checkpoints(record)
    except MissingError:
        return True
    except (WorkspaceError, ValueError, RecursionError):
        return False
    return all(re.fullmatch(r"checkpoint_[\w.-]+", name) for name in names)


def _reason(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = str(next(iter(failures.values()))).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _train_on_worker(config: dict[str, Any]) -> str:
    """Train and save; returns why the input was refused, or an empty text."""
    # Imported here, because Ray's train controller imports this module and needs none of them.
    from ray.train.huggingface.transformers import RayTrainReportCallback, prepare_trainer

    from g2is_ray.training.tuning import TunedModel

    with scratch.folder() as temporary:
        try:
            tuned = TunedModel(
                Workspace(config["url"]),
                config["stage"],
                config["plan"],
                config["rows"],
                config["execution"],
                scratch=temporary,
                world_size=ray.train.get_context().get_world_size(),
            )
        except G2isError as error:  # Ray Train would retry a raised error, which cannot help
            return str(error)
        tuned.trainer.add_callback(RayTrainReportCallback())
        prepare_trainer(tuned.trainer)
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            tuned.train()
        else:
            with checkpoint.as_directory() as folder:
                tuned.train(str(Path(folder) / RayTrainReportCallback.CHECKPOINT_NAME))
        if ray.train.get_context().get_world_rank() == 0:
            tuned.save()
    return ""
