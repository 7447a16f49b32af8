"""Whether this machine can run Ray: its folders, token, limits and environment.

Each check is a function of what it looks at and of the limits. It returns a problem in words, or an
empty text, and changes nothing.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket on Linux, in bytes."""

FREE_BYTES = 256 * 2**20
"""Free bytes required where Ray keeps its logs and, if necessary, its objects."""

FOLDER_PREFIX = "g2is-ray-"
_LONGEST_SOCKET = (  # below Ray's folder, with Linux's longest process id
    f"{FOLDER_PREFIX}12345678/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/"
    "dash_MetricsHead"
)

OPEN_FILES = 1024
"""Open files that a process must be allowed: Ray's processes take up to 100, each worker some."""

OWN_THREADS, THREADS_PER_CPU = 500, 30
"""Threads of Ray's processes on a machine, measured as 400, and of a worker for each CPU."""

AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Variables that count as unset if blank; Ray may take a blank for no authentication."""

_AUTH_MODES = ("token", "disabled", "k8s")


# ---- folders -----------------------------------------------------------------


def folder_problem(
    folder: Path, *, socket_path_bytes: int = SOCKET_PATH_BYTES, free_bytes: int = FREE_BYTES
) -> str:
    """Return why Ray cannot keep its sockets and logs in a folder.

    Args:
        folder: parent of Ray's folder.
        socket_path_bytes: longest path of a socket.
        free_bytes: required free space.
    """
    if not folder.is_absolute():
        return "it is a relative path"
    longest = len(os.fsencode(folder / _LONGEST_SOCKET))
    if longest > socket_path_bytes:
        return f"paths of sockets would have {longest} bytes there, of {socket_path_bytes} at most"
    try:
        with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir=folder) as made:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(f"{made}/s")
            Path(made, "f").write_bytes(b"x" * 4096)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"it cannot be used ({error.strerror or error})"
    if free < free_bytes:
        return f"it has {free // 2**20} MiB free, of {free_bytes // 2**20} needed"
    return ""


def folder_candidates(environment: Mapping[str, str]) -> dict[str, Path]:
    """Return folders that Ray could use, the preferred ones first, by the name of their source."""
    named = {name: environment.get(name, "").strip() for name in ("RAY_TMPDIR", "TMPDIR")}
    usual = {path: path for path in ("/tmp", "/var/tmp", "/dev/shm")}
    return {
        source: Path(path).expanduser() if "~" in path else Path(path)
        for source, path in (named | usual).items()
        if path
    }


def shared_memory_problem(needed_bytes: int, folder: Path = Path("/dev/shm")) -> str:
    """Return why Ray's objects cannot be kept in shared memory."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{folder} cannot be used ({error.strerror or error})"
    if free < needed_bytes:
        return f"{folder} has {free // 2**20} MiB free, of {needed_bytes // 2**20} needed"
    return ""


# ---- token -------------------------------------------------------------------


def authentication_problem(environment: Mapping[str, str]) -> str:
    """Return what is wrong with RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH; blank counts as unset."""
    mode = environment.get("RAY_AUTH_MODE", "").strip()
    if mode and mode.lower() not in _AUTH_MODES:
        return (
            f"RAY_AUTH_MODE is {mode!r}, which Ray takes for no authentication: set it to token "
            "or disabled, or unset it"
        )
    path = environment.get("RAY_AUTH_TOKEN_PATH", "").strip()
    if path and mode.lower() != "disabled" and not environment.get("RAY_AUTH_TOKEN", "").strip():
        why = _token_problem(Path(path))
        if why:
            return f"RAY_AUTH_TOKEN_PATH names {path}, and {why}: name a file with the token"
    return ""


def home_problem(home: Path | None) -> str:
    """Return why Ray can neither read its token in a home directory nor write a new one."""
    if home is None:
        return "there is no home directory"
    token = home / ".ray" / "auth_token"
    if token.exists() or token.is_symlink():
        return "" if not _token_problem(token) else f"{token}: {_token_problem(token)}"
    place = token.parent if token.parent.exists() else home
    try:
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return f"{place} cannot be written ({error.strerror or error})"


def _token_problem(path: Path) -> str:
    try:
        return "" if path.read_bytes().strip() else "it is empty"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def home() -> Path | None:
    """Return the user's home directory, or None: a container's user may have none."""
    try:
        return Path.home()
    except RuntimeError:
        return None


# ---- limits ------------------------------------------------------------------


def open_files_problem(hard: int, *, needed: int = OPEN_FILES) -> str:
    """Return what is wrong with the hard limit of open files; negative means no limit."""
    if 0 <= hard < needed:
        return (
            f"a process may open {hard} files, and Ray needs {needed}: raise the hard limit, such "
            f"as by `ulimit -Hn {max(needed, 65536)}` as root, or LimitNOFILE of a service"
        )
    return ""


def processes_problem(limit: int, in_use: int, cpus: int, where: str) -> str:
    """Return what is wrong with the limit of threads; negative means no limit.

    Args:
        limit: allowed threads.
        in_use: existing threads.
        cpus: of the machine; Ray starts a worker for each.
        where: what sets the limit, so what the user must raise.
    """
    needed = OWN_THREADS + THREADS_PER_CPU * cpus
    if 0 <= limit < in_use + needed:
        return (
            f"{where} allows {limit} threads, of which {in_use} are in use, and Ray needs about "
            f"{needed} on {cpus} CPUs: raise it"
        )
    return ""


# ---- environment -------------------------------------------------------------


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables that keep requests to this machine from using a proxy."""
    if not any(environment.get(name) for name in ("http_proxy", "HTTP_PROXY", "all_proxy")):
        return {}
    held = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host for host in held.split(",") if host]
    hosts += [host for host in ("127.0.0.1", "localhost", "::1") if host not in hosts]
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(hosts))
