"""Scratch: local files that need not outlive the process, and copies of remote ones.

They lie in the system's temporary folder, which the environment variable TMPDIR moves. The
owner of a scratch folder holds a lock on it, which ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from g2is_ray.errors import SettingError, WorkspaceError

LIMIT = "G2IS_SCRATCH_BYTES"
"""Environment variable: what the copies that a process holds may take; unset, what is free.

Not a setting of the run, because the machines of a cluster differ in their disks.
"""

_PREFIX = "g2is-scratch-"
_TRIES, _PAUSE_SECONDS = 10, 0.1  # to remove a folder


@contextlib.contextmanager
def folder(place: Path | None = None, prefix: str = _PREFIX) -> Iterator[Path]:
    """A new folder for the `with` block; those that killed processes have left are removed.

    Args:
        place: where the folder is made; left out, the system's temporary folder.
        prefix: how the folder's name begins, and the names of those that are removed.
    """
    place = place or Path(tempfile.gettempdir())
    with contextlib.ExitStack() as at_end:
        with _locked(place):  # so that none is removed between its making and its locking
            _remove_abandoned(place, prefix)
            made = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
            at_end.callback(_remove, made)
            at_end.enter_context(_locked(made))
        yield made


def require(size: int, held: int, what: str) -> None:
    """Refuse to copy what does not fit.

    Args:
        size: bytes of the copies that are to be made.
        held: bytes of those that the process holds already.
        what: what is to be copied.

    Raises:
        WorkspaceError: there is too little space, or more would be taken than is allowed.
        SettingError: the limit is not a number.
    """
    place = tempfile.gettempdir()
    needs = f"copies of {what} need {_gigabytes(size)} in {place}"
    limit = os.environ.get(LIMIT, "")
    if limit and not limit.isdecimal():
        raise SettingError(f"{LIMIT} should be a number of bytes, got {limit!r}")
    if limit and held + size > int(limit):
        besides = f" besides {_gigabytes(held)} held already" if held else ""
        raise WorkspaceError(
            f"{needs}{besides}, more than {LIMIT} allows ({_gigabytes(int(limit))}): raise it"
        )
    free = shutil.disk_usage(place).free
    if size > free:
        raise WorkspaceError(
            f"{needs}, where {_gigabytes(free)} are free: set TMPDIR to a folder on a larger disk"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a directory; without `wait`, BlockingIOError if somebody else does."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(directory)


def _remove_abandoned(place: Path, prefix: str) -> None:
    for path in place.glob(prefix + "?" * 8):
        with contextlib.suppress(OSError), _locked(path, wait=False):  # or it is in use
            found = path.stat()  # made by `folder`, not by a user who likes the name
            if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == stat.S_IRWXU:
                _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder, in which a process that is ending may still write."""
    for _ in range(_TRIES):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(_PAUSE_SECONDS)
