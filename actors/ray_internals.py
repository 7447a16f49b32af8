"""Every private interface of Ray that the project uses: one function each, and its reason.

Any release of Ray may change them. So the version of Ray is pinned, no other file uses a private
interface, and `tests/actors/test_ray_internals.py` names the function that an upgrade breaks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private import ray_constants, services, utils
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray._private.worker import global_worker
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated import autoscaler_pb2, gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import RayError

_REQUEST_SECONDS = 60.0


# ---- starting Ray, and joining a cluster -------------------------------------


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Have Ray's processes listen on the loopback interface only, as they do on macOS.

    Ray has no option for it: it replaces a loopback address that it is given.
    """
    with _replaced(ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield


@contextlib.contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Keep Ray from replacing the process's handler of SIGTERM, which it does unasked."""
    with _replaced(utils, "set_sigterm_handler", lambda handler: None):
        yield


@contextlib.contextmanager
def without_uv_run() -> Iterator[None]:
    """Keep Ray from uploading the current folder to workers when the command runs in `uv run`.

    Ray reads the environment variable that says so once, when it is imported.
    """
    with _replaced(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", False):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def objects_in_files(folder: Path) -> dict[str, Any]:
    """Return the option of `ray.init` that keeps Ray's objects in a folder.

    Without it, Ray needs /dev/shm, and warns on every start where that is small.
    """
    return {"_plasma_directory": str(folder)}


def read_authentication_again() -> None:
    """Have Ray read RAY_AUTH_MODE and its token again: Ray keeps what it reads first."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def use_token_if_there() -> None:
    """Use the token of this machine, if it has one and RAY_AUTH_MODE is unset.

    `ray.init` does so for the address `auto`, but not for the HOST:PORT that `auto` stands for.
    """
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def note_address(folder: str) -> None:
    """Write the address of the running Ray into `folder`, where Ray's processes look for it.

    `ray.init` does not, so the processes would join another Ray on this machine.
    """
    utils.write_ray_address(global_worker.node.gcs_address, folder)  # type: ignore[union-attr]


def detected_address() -> str:
    """Return the address of the cluster on this machine, as `auto` means it, or an empty text."""
    found = utils.read_ray_address()
    return found or next(iter(services.find_gcs_addresses()), "")


def as_ray_reaches(address: str) -> str:
    """Return HOST:PORT as Ray uses it: with this machine's address in place of a loopback one."""
    return str(services.canonicalize_bootstrap_address(address))


def cluster_versions(address: str, seconds: float) -> dict[str, str]:
    """Return the `ray_version` and `python_version` of the cluster at HOST:PORT.

    `ray.init` compares the versions too, but waits minutes for an address that does not answer.

    Raises:
        grpc.RpcError: the address does not answer in time, is not a cluster, or refuses the token.
    """
    with init_grpc_channel(address) as channel:
        stub = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)
        messages: Any = gcs_service_pb2  # typed at run time
        request = messages.InternalKVGetRequest(
            key=CLUSTER_METADATA_KEY, namespace=ray_constants.KV_NAMESPACE_CLUSTER
        )
        answer = stub.InternalKVGet(request, timeout=seconds, wait_for_ready=False)
    return dict(json.loads(answer.value)) if answer.value else {}


def is_refused_token(error: grpc.RpcError) -> bool:
    """Whether a cluster answered that the token is missing or wrong."""
    return error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


@contextlib.contextmanager
def worker_output_to(take: Callable[[str], None]) -> Iterator[None]:
    """Give the lines that workers print to `take`, for the `with` block, not to the terminal.

    Ray's public choice is to print all lines or none. Lines of Ray's own processes, such as the
    autoscaler, still reach the terminal. `take` is called in a thread of Ray and must not raise.
    """
    dispatcher = global_worker_stdstream_dispatcher
    to_terminal = dispatcher.emit

    def emit(batch: dict[str, Any]) -> None:
        if not str(batch.get("pid")).isdecimal():
            to_terminal(batch)
            return
        name = batch.get("actor_name") or batch.get("task_name") or "worker"
        for line in batch["lines"]:
            take(f"({name} pid={batch['pid']}, ip={batch.get('ip')}) {line}")

    with _replaced(dispatcher, "emit", emit):
        yield


# ---- actors ------------------------------------------------------------------


def call_in_actor(actor: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the task that calls `function(instance, *arguments)` in the process of an actor.

    A public method for the call would have to be part of every actor class.
    """
    return actor.__ray_call__.remote(function, *arguments)


def failed_in_constructor(error: RayError) -> bool:
    """Whether an actor died because its constructor raised, which Ray tells in no public way."""
    return bool(getattr(error, "actor_init_failed", False))


# ---- what the autoscaler says ------------------------------------------------


def has_autoscaler_v2() -> bool:
    """Whether the cluster has autoscaler v2, which reports the requests that it cannot meet."""
    return bool(is_autoscaler_v2(fetch_from_server=True))


def cluster_status() -> Any:
    """Return a GetClusterStatusReply: demands, pending machines, failed launches.

    No public call returns them.
    """
    messages: Any = autoscaler_pb2  # typed at run time
    return messages.GetClusterStatusReply.FromString(_gcs().get_cluster_status())


def autoscaler_v1_report() -> dict[str, Any]:
    """Return the report of autoscaler v1; empty if there is none. No public call returns it."""
    status = _gcs().internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None)
    return (json.loads(status).get("autoscaler_report") if status else None) or {}


def _gcs() -> Any:
    worker: Any = global_worker
    return worker.gcs_client


# ---- trainings and jobs ------------------------------------------------------


def interruptible_trainer(**options: Any) -> Any:
    """Return a TorchTrainer that leaves Ctrl-C to the process.

    Ray's handler ends the process with status 1, and stays installed after the training.
    """
    from ray.train.torch import TorchTrainer

    trainer: Any = TorchTrainer(**options)
    trainer._register_sigint_handler = lambda controller: None
    return trainer


CHECKPOINT_RECORD = "checkpoint_manager_snapshot.json"
"""Ray Train's file with the names of a training's checkpoints, in the training's folder."""

_NAMED = re.compile(r'"checkpoint_dir_name": "((?:[^"\\]|\\.)*)"')


def recorded_checkpoints(record: str) -> list[str]:
    """Return the names of checkpoints in the text of a `CHECKPOINT_RECORD`.

    Ray Train removes the folders of these names, so the names must be checked before a training.

    Raises:
        ValueError, RecursionError: the text is not JSON.
    """
    return _NAMED.findall(json.dumps(json.loads(record)))


def patient_job_client(address: str) -> Any:
    """Return a JobSubmissionClient whose requests have a time limit.

    Ray's requests have none, and wait forever on a lost connection.

    Raises:
        ConnectionError, RuntimeError: nothing answers at the URL.
        AuthenticationError: the cluster refuses the token.
    """
    from ray.job_submission import JobSubmissionClient

    class PatientClient(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": _REQUEST_SECONDS, **options})

    for name in ("dashboard_sdk", "job.sdk"):  # each sets itself to INFO when it is imported
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    # RAY_ADDRESS would win over the URL, but this variable wins over both.
    os.environ[ray_constants.RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE] = address
    return PatientClient(address)
