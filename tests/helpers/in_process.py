"""The stages of a run in this process: no Ray is started, and no worker imports torch again."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import ray
import ray.train

import jobs.parts
from actors import trainer
from actors.ray_internals import interruptible_trainer
from jobs.session import Session

THIS_MACHINE = {"Alive": True, "Resources": {"CPU": 1}}


class InProcessPool:
    """Stands in for `WorkerPool`: one worker, which processes the items in their order."""

    def __init__(
        self,
        pools: list["InProcessPool"],
        actor_class: Callable[[Any], Any],
        order: Any,
        share: object,
        **options: object,
    ) -> None:
        self._worker = actor_class(order)
        self.done: list[str] = []
        self.ended = False
        pools.append(self)

    def __enter__(self) -> "InProcessPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.ended = True

    def run(self, items: Iterable[Any], label: str, written: object = None) -> dict[Any, Any]:
        receipts = {}
        for item in items:
            receipts[item] = self._worker.process(item)
            self.done.append(str(item))
        return receipts


def work_in_process(patch: pytest.MonkeyPatch) -> list[InProcessPool]:
    """Let every stage run in this process until the patch is undone; trainings too.

    Returns:
        The pools that are made from now on.
    """
    pools: list[InProcessPool] = []
    patch.setattr(jobs.parts, "WorkerPool", functools.partial(InProcessPool, pools))
    patch.setattr(Session, "ray", lambda session: None)
    patch.setattr(ray, "nodes", lambda: [THIS_MACHINE])
    patch.setattr(trainer, "interruptible_trainer", local_trainer)
    patch.setattr(trainer, "check_nodes", lambda num_cpus, num_gpus: None)
    return pools


def done_by(pools: list[InProcessPool]) -> list[str]:
    """The items that pools have processed, in order."""
    return [item for pool in pools for item in pool.done]


def local_trainer(**options: Any) -> Any:
    """A trainer in Ray Train's local mode, which calls the training loop in this process."""
    return interruptible_trainer(
        **options | {"scaling_config": ray.train.ScalingConfig(num_workers=0)}
    )
