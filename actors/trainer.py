"""Training inside Ray Train: workers, checkpoints, resume."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train

from actors.connection.cluster import Share
from actors.pool.version_check import check_nodes
from actors.ray_internals import interruptible_trainer
from g2is_ray.config import ExecutionSettings, TrainingPlan
from g2is_ray.errors import G2isError, MissingError, WorkError, WorkspaceError
from g2is_ray.workspace import scratch
from g2is_ray.workspace.workspace import Workspace

log = logging.getLogger(__name__)

_CHECKPOINTS = "checkpoints"
_RECORD = "checkpoint_manager_snapshot.json"  # Ray Train's own
_NAMED = re.compile(r'"checkpoint_dir_name": "((?:[^"\\]|\\.)*)"')
_RESTARTS = 3  # of a training whose workers fail; a restart goes on from the last checkpoint


def train(
    workspace: Workspace,
    stage: str,
    plan: TrainingPlan,
    rows: Sequence[int],
    execution: ExecutionSettings,
    share: Share,
) -> dict[str, Any]:
    """Train an adapter on pool rows and write it as `stage`; returns the stage's receipt.

    A killed training that is started again goes on from its last checkpoint.

    Raises:
        G2isError: model, adapter or rows cannot be used.
        WorkError: the workers failed too often, or nodes cannot train: see `check_nodes`.
    """
    run_name = stage.replace("/", "-").replace("@", "-vs-")
    own = f"{_CHECKPOINTS}/{run_name}"
    # One that is new, or removed to be made anew, does not go on from what was before.
    if not workspace.names(stage) or not _names_own_checkpoints(workspace, own):
        workspace.remove(own)
    file_system, checkpoints = workspace.arrow(_CHECKPOINTS)
    check_nodes(share.num_cpus, share.num_gpus)
    trainer = interruptible_trainer(
        train_loop_per_worker=_train_on_worker,
        train_loop_config={
            "url": workspace.location(""),
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
            f"{stage}: training failed {_RESTARTS + 1} times: {_reason(error)}; start it again to "
            "go on from its last checkpoint"
        ) from error
    if result.return_value:
        workspace.remove(f"{_CHECKPOINTS}/{run_name}")
        raise G2isError(result.return_value)
    receipt = workspace.receipt(stage)
    if receipt is None:
        raise WorkError(f"{stage}: training ended without an adapter; start it again")
    workspace.remove(f"{_CHECKPOINTS}/{run_name}")
    return receipt


def _names_own_checkpoints(workspace: Workspace, folder: str) -> bool:
    """Whether Ray Train's record of a training names checkpoints in its folder, and no others.

    Ray Train removes what its record names, and the workspace may be from anybody.
    """
    try:
        text = workspace.read_bytes(f"{folder}/{_RECORD}").decode()
        names = _NAMED.findall(json.dumps(json.loads(text)))
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
    """Train and save; returns why the input was refused, or nothing."""
    # Here, because Ray's train controller imports this module and needs none of it.
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
        except G2isError as error:  # raised, it would be tried again, which cannot help
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
