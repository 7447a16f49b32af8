"""Connecting to Ray, and what a worker may take of it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray

from g2is_ray.config import ExecutionSettings
from g2is_ray.errors import WorkError

log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 128 * 2**20  # only receipts travel through it


_WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve each other where processes share CPUs
    "PYTHONWARNINGS": "ignore::FutureWarning",  # transformers about itself, a line per worker
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or every line of metrics is printed twice
}
_LOCAL_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process saved per training
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # or each training ends up to 2 s late
}


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Join the Ray cluster at `address`, or start one on this machine, for the `with` block.

    Raises:
        WorkError: there is no cluster at the address, or Ray cannot start here.
    """
    address = address or os.environ.get("RAY_ADDRESS", "local")
    options: dict[str, Any] = {"address": address, "logging_level": logging.WARNING}
    if address == "local":
        # Inherited, so that Ray's idle processes fit; with a runtime_env each is started anew.
        os.environ.update(_WORKER_ENVIRONMENT | _LOCAL_ENVIRONMENT)
        options.update(
            include_dashboard=True,  # Ray Train asks it for the state of actors
            dashboard_host="127.0.0.1",
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    else:
        options["runtime_env"] = {"env_vars": _WORKER_ENVIRONMENT}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise WorkError(f"Ray at {address} cannot be used: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True, kw_only=True)
class Share:
    """Workers of a stage, and what each of them takes."""

    workers: int
    num_cpus: int
    num_gpus: int
    spot_patience_seconds: int = 0


def share_of_cluster(
    settings: ExecutionSettings, workers: int = 0, *, gpus_help: bool = True
) -> Share:
    """Split the cluster: a GPU for each worker, or the CPUs evenly where there is no GPU.

    Args:
        workers: how many; 0 takes one per GPU, or one where there is none.
        gpus_help: whether the work can use a GPU at all.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    wanted = settings.accelerator == "gpu" or (settings.accelerator == "auto" and gpus > 0)
    if wanted and gpus_help:
        return Share(
            workers=workers or max(1, gpus),
            num_cpus=1,
            num_gpus=1,
            spot_patience_seconds=settings.spot_patience_seconds,
        )
    workers = workers or 1
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU")] or [1]
    return Share(
        workers=workers,
        num_cpus=max(1, max(cpus) // math.ceil(workers / len(cpus))),
        num_gpus=0,
    )
