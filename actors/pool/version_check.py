"""The handshake of a worker before it is given work: its node, its code, and its GPU."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.pool.shared import SharedWorkspace
from g2is_ray import __version__
from g2is_ray.errors import WorkError

UNCHECKED_GPU = "G2IS_UNCHECKED_GPU"
"""Environment variable of a node: set to 1, GPUs that Ray declares there are not tried."""

_PACKAGES = ("g2is_ray", "actors", "jobs")
_ROOT = Path(__file__).resolve().parents[2]
_OURS = "|".join(_PACKAGES)
_NOT_IMPORTED = re.compile(
    rf"No module named '({_OURS})\b"
    rf"|cannot import name '\w+' from '({_OURS})\b"
    rf"|Can't get attribute '\w+' on <module '({_OURS})\b"
)
_SECONDS = 120.0  # that nodes may take to answer

Handshake = dict[str, Any]
"""The answer of a worker; a dict, because nodes with other versions of this module answer too."""


@functools.cache
def own_code(root: Path = _ROOT) -> dict[str, str]:
    """Return the version of the project in this process, its sources' digest, and its folder."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted((root / package).rglob("*")):
            if file.suffix in (".py", ".j2"):
                digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return {"version": __version__, "digest": digest.hexdigest()[:12], "place": str(root)}


def handshake(_: Any, workspace: SharedWorkspace | None, uses_gpu: bool = False) -> Handshake:
    """Return, on a worker, its node, its mark in the workspace, its code and its GPU's problem."""
    host = ray.util.get_node_ip_address()
    return {
        "mark": workspace.leave_mark(host) if workspace else "",
        "node_id": ray.get_runtime_context().get_node_id(),
        "host": host,
        "code": own_code(),
        "is_local": _is_local(),
        "gpu": gpu_problem() if uses_gpu else "",
    }


def _is_local() -> bool:
    """Whether this process belongs to a Ray that listens on the loopback interface only."""
    return ray.get_runtime_context().gcs_address.startswith(("127.", "[::1]"))


def gpu_problem() -> str:
    """Return why torch cannot use the GPU that Ray declares, or an empty text."""
    if os.environ.get(UNCHECKED_GPU) == "1":
        return ""
    import torch

    try:
        torch.ones(1, device="cuda").add(1).item()  # computes, which an old driver does not
    except (RuntimeError, AssertionError) as error:
        return f"torch {torch.__version__} cannot use it: {str(error).strip().splitlines()[0]}"
    if not torch.distributed.is_nccl_available():
        return f"torch {torch.__version__} has no NCCL, which trainings on GPUs need"
    return ""


def problem(answer: Handshake, code: Mapping[str, str] | None = None) -> str:
    """Return why a worker cannot be given work, or an empty text.

    Args:
        answer: the worker's handshake.
        code: the driver's code; left out, the code of this process.
    """
    own = code or own_code()
    if not isinstance(answer, dict) or "code" not in answer:
        return f"a node has an older version of g2is-ray than {own['version']}: install the same"
    node, other = f"node {answer['host']}", answer["code"]
    remedy = "install the same on every node"
    if other["version"] != own["version"]:
        return (
            f"{node} has g2is-ray {other['version']} ({other['place']}), and this command is "
            f"{own['version']}: {remedy}"
        )
    if other["digest"] != own["digest"] and not answer["is_local"]:  # edited since it began
        return (
            f"{node} has other sources of g2is-ray {own['version']} ({other['place']}, "
            f"{other['digest']}) than this command ({own['place']}, {own['digest']}): {remedy}"
        )
    if answer["gpu"]:
        return (
            f"{node} declares a GPU to Ray, but {answer['gpu']}; install a CUDA build of torch "
            "that its driver knows, or set accelerator to cpu"
        )
    return ""


def missing_code(error: BaseException) -> str:
    """Return what to do about a worker that lacks this version's code, or an empty text."""
    if not (found := _NOT_IMPORTED.search(str(error))):
        return ""
    said = next(line for line in str(error).splitlines() if found[0] in line).strip()
    where = f"node {error.ip}" if isinstance(error, RayTaskError) else "a node"
    return (
        f"{where} lacks g2is-ray {__version__}, or has another package under its name ({said}): "
        "install the same version on every node"
    )


def check_nodes(num_cpus: int, num_gpus: int) -> None:
    """Check every node that could train now, because a training fails late and without a reason.

    Args:
        num_cpus, num_gpus: of one training worker.

    Raises:
        WorkError: a node has other code, or a GPU that torch cannot use.
    """
    if _is_local() and not num_gpus:
        return  # this machine, with this code
    request = {"CPU": num_cpus, "GPU": num_gpus}
    _check_nodes(
        tuple(
            node["NodeID"]
            for node in ray.nodes()
            if node["Alive"] and all(node["Resources"].get(n, 0) >= a for n, a in request.items())
        ),
        num_gpus,
    )


@functools.cache
def _check_nodes(nodes: tuple[str, ...], num_gpus: int) -> None:
    task = ray.remote(num_cpus=0, num_gpus=num_gpus, max_retries=0)(handshake)
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            None, None, num_gpus > 0
        )
        for node in nodes
    ]
    answered, busy = (
        ray.wait(asked, num_returns=len(asked), timeout=_SECONDS) if asked else ([], [])
    )
    for one in busy:
        ray.cancel(one, force=True)
    for one in answered:
        try:
            why = problem(ray.get(one))
        except RayError as error:  # a node that is going, if it is not its code
            why = missing_code(error)
        if why:
            raise WorkError(why)
