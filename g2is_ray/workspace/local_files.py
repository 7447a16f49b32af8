"""Files below a local folder, written and removed without following a link below it.

A workspace may come from somebody else, with links in the place of its files and folders. The
folder itself may be a link, and so may those above it: whoever names it has chosen them. Files
are read through links, so a finished stage may lie on another disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OWN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would be waited for


def read(full: str) -> bytes:
    """Content of a file, which must be one and no pipe or device.

    Raises:
        OSError: it is missing, no file, or cannot be read.
    """
    with os.fdopen(_open_file(full, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read()


def require_file(file: Path) -> None:
    """Refuse what is no file, before a library opens it.

    Raises:
        OSError: it is missing, a folder, or a pipe, for which a library would wait for ever.
    """
    os.close(_open_file(str(file), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def write(root: str, path: str, data: bytes) -> None:
    """Write a whole file or nothing: a temporary name and a rename, which replaces a link.

    Raises:
        OSError: it cannot be written, or a folder on the way is a link.
    """
    with _parent(root, path, make=True) as (folder, name):
        temporary = f".{name}.{uuid.uuid4().hex}.tmp"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OWN
            with os.fdopen(os.open(temporary, flags, 0o666, dir_fd=folder), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise


def append(root: str, path: str, data: bytes) -> None:
    """Add to the end of a file, which is made if it is not there.

    A file that has a second name (a hard link) is replaced, so that the other one keeps its
    content.

    Raises:
        OSError: as `write`, or the file is a link.
    """
    with os.fdopen(open_own(root, path), "r+b") as file:
        if os.fstat(file.fileno()).st_nlink > 1:
            write(root, path, file.read() + data)
            return
        file.seek(0, os.SEEK_END)
        file.write(data)


def open_own(root: str, path: str) -> int:
    """Descriptor of a file to read and write, which is made if it is not there.

    Raises:
        OSError: it cannot be written, or it or a folder on the way is a link.
    """
    with _parent(root, path, make=True) as (folder, name):
        try:
            return _open_file(name, os.O_RDWR | os.O_CREAT | _OWN, folder)
        except OSError as error:
            raise _told(error, root, path, folder, name) from None


def remove(root: str, path: str) -> None:
    """Remove a file or a whole folder; of a link, the link itself.

    Raises:
        OSError: it is missing, cannot be removed, or a folder on the way is a link.
    """
    if not path:
        shutil.rmtree(root)
        return
    with _parent(root, path, make=False) as (folder, name):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)


def require_no_links(root: str, path: str) -> None:
    """Refuse links in `path` and anywhere below it, for a library that writes there by itself.

    Raises:
        OSError: there is one; names it.
    """
    steps = [Path(root, *path.split("/")[:depth]) for depth in range(1, path.count("/") + 2)]
    folders = os.walk(steps[-1])
    found = (Path(at, name) for at, inner, files in folders for name in (*inner, *files))
    for place in (*steps, *found):
        if place.is_symlink():
            raise _is_link(str(place))


@contextlib.contextmanager
def _parent(root: str, path: str, *, make: bool) -> Iterator[tuple[int, str]]:
    """Descriptor of the folder that `path` is in, and its name there; no link is followed."""
    *folders, name = path.split("/")
    if make:
        os.makedirs(root, exist_ok=True)  # noqa: PTH103  as a text it is never normalized
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for depth, folder in enumerate(folders, start=1):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, dir_fd=at)
            try:
                inner = os.open(folder, _FOLDER, dir_fd=at)
            except OSError as error:
                raise _told(error, root, "/".join(folders[:depth]), at, folder) from None
            os.close(at)
            at = inner
        yield at, name
    finally:
        os.close(at)


def _open_file(name: str, flags: int, folder: int | None = None) -> int:
    opened = os.open(name, flags, 0o666, dir_fd=folder)
    mode = os.fstat(opened).st_mode
    if not stat.S_ISREG(mode):
        os.close(opened)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")
    return opened


def _told(error: OSError, root: str, path: str, folder: int, name: str) -> OSError:
    """The error, or one that says that a link is in the way."""
    with contextlib.suppress(OSError):
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            return _is_link(f"{root}/{path}")
    return error


def _is_link(place: str) -> OSError:
    return OSError(
        errno.ELOOP,
        f"{place} is a link, through which nothing is written or removed; put the whole workspace "
        "where the link leads",
    )
