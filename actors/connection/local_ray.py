"""A Ray of its own on this machine: checked before it starts, and removed when it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import ray

from actors import ray_internals
from actors.connection import machine
from g2is_ray.errors import WorkError
from g2is_ray.workspace import scratch

log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 128 * 2**20  # only receipts travel through it
_OPEN_FILES = 65536  # that the soft limit is raised to, as Ray does
_TEMPORARY_PATH_BYTES = 70  # beyond, sockets of Python's multiprocessing have no room
_END_SECONDS = 1.0  # that Ray's processes may take to end after Ray has

_UNSET = (  # what would have this Ray's processes look for another one
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_RUNTIME_ENV_HOOK",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
)
_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process saved per training
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # or each training ends up to 2 s late
}


@contextlib.contextmanager
def started(environment: Mapping[str, str]) -> Iterator[None]:
    """Start Ray on this machine for the `with` block; other Rays on it are left alone.

    Its ports are on the loopback interface. Its files are in a folder of its own, which is removed
    at the end; what killed processes have left of theirs is removed first.

    Args:
        environment: variables for Ray's processes.

    Raises:
        WorkError: this machine cannot run Ray, or Ray does not start.
    """
    place = _place_for_files()
    _check_limits()
    if hook := os.environ.get("RAY_RUNTIME_ENV_HOOK"):
        log.warning("RAY_RUNTIME_ENV_HOOK (%s) is ignored: Ray is this run's own", hook)
    with contextlib.ExitStack() as at_end:
        folder = at_end.enter_context(scratch.folder(place, machine.FOLDER_PREFIX))
        # Inherited, so that Ray's idle processes fit; with a runtime_env each is started again.
        variables = {**_ENVIRONMENT, **environment, **machine.without_proxy(os.environ)}
        variables |= {"RAY_TMPDIR": str(folder)} | _token()
        if len(os.fsencode(tempfile.gettempdir())) > _TEMPORARY_PATH_BYTES:
            variables["TMPDIR"] = str(folder)
        at_end.enter_context(_environment(variables))
        ray_internals.read_authentication_again()
        at_end.enter_context(_shut_down_at_the_end(folder))
        _start(folder)
        yield


def _start(folder: Path) -> None:
    shared_memory = machine.shared_memory_problem(_OBJECT_STORE_BYTES)
    if shared_memory:
        log.info("Ray keeps its objects in %s: %s", folder, shared_memory)
    options = ray_internals.objects_in_files(folder) if shared_memory else {}
    try:
        with (
            ray_internals.on_loopback(),
            ray_internals.signal_handlers_kept(),
            ray_internals.without_uv_run(),
        ):
            ray.init(
                address="local",
                logging_level=logging.WARNING,
                include_dashboard=True,  # Ray Train asks it for the state of actors
                dashboard_host="127.0.0.1",
                object_store_memory=_OBJECT_STORE_BYTES,
                **options,
            )
        ray_internals.note_address(str(folder / "ray"))
    except Exception as error:  # Ray's node raises what it likes
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise WorkError(f"Ray cannot start on this machine: {why[-1]}") from error
    if (home := machine.home()) is not None:
        with contextlib.suppress(OSError):  # Ray makes it readable to all users of the machine
            (home / ".ray" / "auth_token").chmod(0o600)


# ---- before it starts ----------------------------------------------------------


def _place_for_files() -> Path:
    """The first folder that Ray can use, of those named and the usual ones."""
    problems: list[str] = []
    for source, folder in machine.folder_candidates(os.environ).items():
        why = machine.folder_problem(folder)
        if not why:
            if problems:
                log.warning("Ray keeps its files in %s: %s", folder, "; ".join(problems))
            return folder
        named = f"{source} {folder}" if source != str(folder) else source
        problems.append(f"{named}: {why}")
    raise WorkError(
        f"Ray finds no folder for its files: {'; '.join(problems)}; set RAY_TMPDIR to a folder "
        "with a short path that can be written"
    )


def _check_limits() -> None:
    """Raise the process's soft limits as far as Ray needs; refuse hard ones that are too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    _, most = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    problems = [machine.open_files_problem(hard)]
    cpus = os.cpu_count() or 1
    if most != resource.RLIM_INFINITY and os.geteuid() != 0:  # root is not held to it
        in_use = _threads_of(os.getuid())
        problems.append(machine.processes_problem(most, in_use, cpus, "the limit `ulimit -u`"))
    held = _pids_of_container()
    if held is not None:
        problems.append(machine.processes_problem(*held, cpus, "the container's `--pids-limit`"))
    for problem in problems:
        if problem:
            raise WorkError(f"Ray cannot start on this machine: {problem}")


def _threads_of(user: int) -> int:
    total = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == user:
                total += process.num_threads()
    return total


def _pids_of_container() -> tuple[int, int] | None:
    """Threads that the control group allows and has, where it says so."""
    for folder in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/pids")):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            limit = int((folder / "pids.max").read_text())
            return limit, int((folder / "pids.current").read_text())
    return None


def _token() -> dict[str, str]:
    """A token for this run alone, where Ray can neither read nor write the user's."""
    mode = os.environ.get("RAY_AUTH_MODE", "").strip().lower()
    if mode == "disabled":
        return {}
    given = any(os.environ.get(f"RAY_AUTH_TOKEN{end}", "").strip() for end in ("", "_PATH"))
    why = "" if given else machine.home_problem(machine.home())
    if not why:
        return {}
    log.warning("Ray gets a token for this run alone: %s", why)
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


# ---- what it leaves ------------------------------------------------------------


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The process's environment with `variables`, without what is unset, for the `with` block."""
    before = dict(os.environ)
    blank = [name for name in machine.AUTHENTICATION if not os.environ.get(name, "x").strip()]
    for name in (*_UNSET, *blank):
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        changed = [*variables, *_UNSET, *blank, "RAY_AUTH_MODE"]  # the last by Ray itself
        for name in changed:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


@contextlib.contextmanager
def _shut_down_at_the_end(folder: Path) -> Iterator[None]:
    """Shut Ray down after the `with` block, and its processes also where it was cut short."""
    try:
        yield
    finally:
        processes = _processes(folder)
        ray.shutdown()
        _, alive = psutil.wait_procs(processes, timeout=_END_SECONDS)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _processes(folder: Path) -> list[psutil.Process]:
    """Ray's processes that this one has started, with all that they have started."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            command = " ".join(child.cmdline())
            if str(folder) in command or "ray_process_reaper" in command:
                found += [child, *child.children(recursive=True)]
    return found
