"""SHA-256 of local files, each read once for as long as it is not written again.

What was found is kept in the user's cache folder (XDG_CACHE_HOME, or ~/.cache) with the file's
size, times of change and inode. If that folder cannot be written, files are read each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from pathlib import Path

from g2is_ray.errors import InputError
from g2is_ray.workspace import local_files

log = logging.getLogger(__name__)

_SMALL_BYTES = 2**20  # not worth a file in the cache
_LARGE_BYTES = 2**32  # takes seconds, so the log says what is being done
_SETTLED_NS = 2 * 10**9  # the coarsest tick of a file system: later changes have another time


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
        InputError: it changes while it is read.
    """
    began, before = time.time_ns(), _state(path)
    size = before[0]
    kept = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    if size >= _SMALL_BYTES and (found := _recall(kept, before)):
        return found
    if size >= _LARGE_BYTES:
        log.info("%s: reading %.1f GB once, to tell it from other versions", path, size / 1e9)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if _state(path) != before:
        raise InputError(f"{path}: changes while it is read; wait until it is complete")
    if size >= _SMALL_BYTES and began - max(before[1:3]) > _SETTLED_NS:
        with contextlib.suppress(OSError, RuntimeError):  # no home folder, or one for reading only
            entry = json.dumps({"state": before, "sha256": digest})
            local_files.write(str(_folder()), kept, entry.encode())
    return digest


def _state(path: Path) -> list[int]:
    """What changes when the file does: size, times of change of content and inode, the inode."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "g2is-ray" / "digests"


def _recall(kept: str, state: list[int]) -> str | None:
    with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, KeyError):
        entry = json.loads((_folder() / kept).read_bytes())
        if entry["state"] == state:
            return str(entry["sha256"])
    return None
