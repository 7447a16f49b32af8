"""Submit the main job to a Ray cluster and follow it: `g2is submit`."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import urllib.parse
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic.dataclasses import dataclass

from g2is_ray.config import STRICT, build
from g2is_ray.data.sources import expand
from g2is_ray.errors import InputError, SettingError, WorkError, last_line
from g2is_ray.selector.methods import parse_method

log = logging.getLogger(__name__)

ENTRYPOINT = "python -m jobs.main_job --config run.yaml"
_WORKSPACE = "g2is_workspace"  # the job's metadata
_FILES = ("pool", "append", "target", "test")  # settings that name files of rows
_FOLDERS = ("model", "warmup_from")  # settings that may name folders
_METHODS = ("selector", "baselines")  # settings that may name files of code
_UPLOAD_BYTES = 500 * 2**20  # Ray's limit


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SubmitSettings:
    """Submitting"""

    wait: bool = True
    """Follow the job's log to its end."""


def submit(values: Mapping[str, Any]) -> int:
    """Run the main job with the settings `values` on the cluster at `values["address"]`.

    The job gets one configuration file with all settings, and the files of rows and selectors that
    the settings name by relative paths. Absolute paths and URLs must exist on the cluster.

    Args:
        values: settings of the main job by name, and those of `SubmitSettings`; `workspace` is a
            URL or an absolute path that every node of the cluster reaches.

    Returns:
        The job's exit status; 0 without `wait`, `job_log.LOST` if the cluster is no longer
        reachable.

    Raises:
        SettingError: a setting names a place that the cluster cannot reach.
        InputError: files are missing, or too large to upload.
        WorkError: the cluster refuses the job, or it ended without an exit status.
        KeyboardInterrupt: after Ctrl-C or a request to end; the job goes on.
    """
    from actors.ray_internals import patient_job_client
    from jobs.job_log import follow

    address = _dashboard(values.get("address", ""))
    settings = {**values, "workspace": _place(values["workspace"])}
    settings.pop("wait", None)
    settings.pop("address", None)  # of the dashboard; the job uses the cluster that it runs on
    files = _files_of(settings)
    with tempfile.TemporaryDirectory(prefix="g2is-submit-") as scratch:
        package = _package(Path(scratch) / "job.zip", settings, files)
        with _asking(address):
            client = patient_job_client(address)
            job = client.submit_job(
                entrypoint=ENTRYPOINT,
                runtime_env={"working_dir": str(package)},
                submission_id=_free_id(client, settings["workspace"]),
                metadata={_WORKSPACE: settings["workspace"]},
            )
    log.info("submitted job %s; commands to follow and to stop it:", job)
    for command in ("logs --follow", "stop"):
        log.info("    ray job %s --address %s %s", command, address, job)
    if not build(SubmitSettings, values).wait:
        return 0
    try:
        with _asking(address):
            return follow(client, job, address)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("no longer following the job; it goes on") from None


def _dashboard(address: str) -> str:
    if not address.startswith(("http://", "https://")):
        raise SettingError(
            "address should be the URL of the cluster's dashboard, such as "
            f"http://127.0.0.1:8265, got {address!r}"
        )
    if urllib.parse.urlsplit(address).hostname in ("127.0.0.1", "localhost", "::1"):  # a tunnel
        from actors.connection.machine import without_proxy

        os.environ.update(without_proxy(os.environ))
    return address


def _place(workspace: str) -> str:
    """Return the workspace in its one canonical spelling."""
    path = workspace.removeprefix("file://")
    if "://" in path:
        return path.rstrip("/")
    if not path.startswith("/"):
        raise SettingError(
            f"workspace {workspace} is a relative path, which the cluster cannot resolve: give a "
            "URL or an absolute path that every node reaches"
        )
    return os.path.normpath(path)


# ---- what is uploaded --------------------------------------------------------


def _files_of(settings: Mapping[str, Any]) -> list[str]:
    """Return the files in the current folder, or below, that the settings name."""
    for name in _FOLDERS:
        for folder in _texts(settings.get(name, ())):
            if not Path(folder).is_absolute() and Path(folder).is_dir():
                raise SettingError(
                    f"{name} {folder} is a folder on this machine: give an absolute path that "
                    "exists on every node of the cluster, or a model's name on the hub"
                )
    sources = [source for name in _FILES for source in _texts(settings.get(name, ()))]
    methods = [one for name in _METHODS for one in _texts(settings.get(name, ()))]
    selectors = [parse_method(text).selector for text in methods]
    sources += [name.rpartition(":")[0] for name in selectors if ".py:" in name]
    local = [s for s in sources if "://" not in s and not s.startswith(("/", "~"))]
    files = expand(local)
    for file in files:
        if file.startswith(".."):
            raise InputError(
                f"{file} is not below the current folder, so it cannot be uploaded: give the "
                "command from a folder above it, or put the file where the cluster reaches it"
            )
    size = sum(Path(file).stat().st_size for file in files)
    if size > _UPLOAD_BYTES:
        raise InputError(
            f"{len(files)} files have {size / 2**20:.0f} MiB, and a job takes "
            f"{_UPLOAD_BYTES / 2**20:.0f} MiB at most: put them on shared storage, and give URLs"
        )
    return files


def _texts(value: Any) -> Sequence[str]:
    """Return the texts of a setting that holds one text, several, or texts by name."""
    if isinstance(value, str):
        return [value]
    return list(value.values()) if isinstance(value, Mapping) else list(value)


def _package(path: Path, settings: Mapping[str, Any], files: Sequence[str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as package:
        package.writestr("run.yaml", yaml.safe_dump(dict(settings), allow_unicode=True))
        for file in files:
            package.write(file)
    return path


# ---- the cluster ---------------------------------------------------------------


def _free_id(client: Any, workspace: str) -> str:
    """Return the id of the next job on the workspace.

    The id counts the jobs of the workspace. Ray accepts each id once, so it refuses one of two
    commands that choose an id at the same moment.

    Raises:
        WorkError: a job on the workspace has not ended.
    """
    stem = f"g2is-{hashlib.sha256(workspace.encode()).hexdigest()[:12]}-"
    jobs = client.list_jobs()
    for job in jobs:
        if (job.metadata or {}).get(_WORKSPACE) == workspace and not job.status.is_terminal():
            raise WorkError(
                f"job {job.submission_id} is already running on {workspace}: follow it with `ray "
                "job logs --follow`, stop it with `ray job stop`, or use another workspace"
            )
    ids = [job.submission_id or "" for job in jobs]
    numbers = [int(one.removeprefix(stem)) for one in ids if one.startswith(stem)]
    return f"{stem}{max(numbers, default=0) + 1}"


@contextlib.contextmanager
def _asking(address: str) -> Iterator[None]:
    """Turn errors of requests to the cluster into one sentence."""
    import aiohttp
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise WorkError(
            f"the cluster at {address} does not accept the token of this machine: set "
            "RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token"
        ) from None
    except (OSError, RuntimeError, aiohttp.ClientError) as error:
        raise WorkError(f"the cluster at {address} cannot be used: {last_line(error)}") from None
