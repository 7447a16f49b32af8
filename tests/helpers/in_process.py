"""The stages of a run in this process: no Ray is started, and no worker imports torch again."""

import functools
from collections.abc import Iterable
from typing import Any

import pytest
import ray
import ray.train

from actors import trainer
from actors.pool.pool import WorkerPool
from actors.ray_internals import interruptible_trainer
from jobs.session import Session

THIS_MACHINE = {"Alive": True, "Resources": {"CPU": 1}}


def work_in_process(patch: pytest.MonkeyPatch) -> list[Any]:
    """Let every stage run in this process until the patch is undone.

    Pools have one worker, which processes the items in their order. Trainings run in Ray Train's
    local mode.

    Returns:
        The items that pools process from now on.
    """
    processed: list[Any] = []

    def describe(
        pool: Any, actor_class: type, arguments: dict[str, Any], share: object, **options: object
    ) -> None:
        pool.worker = functools.cache(lambda: actor_class(**arguments))

    def run(pool: Any, items: Iterable[Any], label: str) -> dict[Any, Any]:
        receipts = {}
        for item in items:
            receipts[item] = pool.worker().process(item)
            processed.append(item)
        return receipts

    patch.setattr(WorkerPool, "__init__", describe)
    patch.setattr(WorkerPool, "run", run)
    patch.setattr(Session, "ray", lambda session: None)
    patch.setattr(ray, "nodes", lambda: [THIS_MACHINE])
    patch.setattr(trainer, "interruptible_trainer", local_trainer)
    patch.setattr(trainer, "check_nodes", lambda num_cpus, num_gpus: None)
    return processed


def local_trainer(**options: Any) -> Any:
    """A trainer that calls the training loop in this process."""
    return interruptible_trainer(
        **options | {"scaling_config": ray.train.ScalingConfig(num_workers=0)}
    )
