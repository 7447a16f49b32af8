"""Connecting to Ray, and each worker's share of the cluster."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import ray

from actors import ray_internals
from actors.connection import address as addresses
from actors.connection import local_ray, machine
from g2is_ray.config import ExecutionSettings
from g2is_ray.errors import SettingError, WorkError

log = logging.getLogger(__name__)

_WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve processes that share CPUs
    "PYTHONWARNINGS": "ignore::FutureWarning",  # transformers would print a line per worker
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or Ray prints every line of metrics twice
}


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Join the Ray cluster at `address`, or start one on this machine, for the `with` block.

    A process that is connected to Ray already, such as a notebook, stays connected.

    Raises:
        SettingError: the address or a variable of authentication is wrong.
        WorkError: no cluster answers at the address, or Ray cannot start on this machine.
    """
    if ray.is_initialized():
        log.info("Ray is initialized already, so its cluster is used")
        yield
        return
    if problem := machine.authentication_problem(os.environ):
        raise SettingError(problem)
    is_automatic = address.strip() == "auto"
    address = addresses.chosen(address, os.environ)
    if address == addresses.LOCAL:
        with local_ray.started(_WORKER_ENVIRONMENT):
            yield
        return
    if is_automatic:
        ray_internals.use_token_if_there()
    ray_internals.read_authentication_again()
    addresses.check(address)
    try:
        _join(address)
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    try:
        with ray_internals.signal_handlers_kept(), ray_internals.without_uv_run():
            ray.init(
                address=address,
                logging_level=logging.WARNING,
                runtime_env={"env_vars": _WORKER_ENVIRONMENT},
            )
    except Exception as error:  # a hook of RAY_RUNTIME_ENV_HOOK may raise anything
        why = str(error).strip().splitlines() or [type(error).__name__]
        hook = os.environ.get("RAY_RUNTIME_ENV_HOOK")
        blamed = f" (RAY_RUNTIME_ENV_HOOK is {hook})" if hook else ""
        raise WorkError(f"Ray at {address} cannot be used: {why[-1]}{blamed}") from error


@dataclass(frozen=True, kw_only=True)
class Share:
    """Number of workers of a stage, and resources of each."""

    workers: int
    num_cpus: int
    num_gpus: int
    spot_patience_seconds: int = 0


def share_of_cluster(settings: ExecutionSettings, workers: int = 0) -> Share:
    """Split the cluster: a GPU per worker, or equal shares of the CPUs without GPUs.

    Args:
        workers: how many; 0 means one per GPU, or one without GPUs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    wanted = settings.accelerator == "gpu" or (settings.accelerator == "auto" and gpus > 0)
    if wanted:
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
