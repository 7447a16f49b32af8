"""Storage: files below one root, which is a local directory or any fsspec URL."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
from numpy.lib.format import open_memmap, read_array
from numpy.typing import NDArray

from g2is_ray.errors import MissingError, SettingError, StorageError, WorkspaceError
from g2is_ray.workspace import local_files, scratch
from g2is_ray.workspace.remote import normal_url, open_url, reason

_copies: dict[str, NDArray[Any]] = {}  # mapped from scratch in this process, by SHA-256


class Storage:
    """Reads and writes whole files; cheap to make and to pickle.

    Raises:
        SettingError: the URL's kind of storage is unknown, or needs a package.
    """

    def __init__(self, url: str) -> None:
        self.url = normal_url(str(url))
        try:
            # Without fsspec's cache of listings: other processes write here too.
            self._fs, self._root = open_url(self.url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise SettingError(f"{self.url} cannot be opened: {error}") from None
        self.is_local = "file" in self._fs.protocol

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return type(self), (self.portable_url,)

    @property
    def portable_url(self) -> str:
        """The URL, or the absolute path where it is local, for processes in other folders."""
        return self._root if self.is_local else self.url

    def location(self, path: str) -> str:
        """Absolute path or URL of `path`, as other libraries and users take it."""
        return self._full(path) if self.is_local else f"{self.url.rstrip('/')}/{path}"

    def writable_folder(self, path: str) -> str:
        """The location of a folder, for a library that writes into it by itself.

        Raises:
            WorkspaceError: it is a link, or a link is in it or on the way to it.
        """
        if self.is_local:
            with self._explained(path, "written"):
                local_files.require_no_links(self._root, path)
        return self.location(path)

    def arrow(self, path: str) -> tuple[pyarrow.fs.FileSystem, str]:
        """pyarrow's file system with this one's access, and `path` in it, for Ray Train.

        Raises:
            WorkspaceError: as `writable_folder`.
        """
        if self.is_local:
            return pyarrow.fs.LocalFileSystem(), self.writable_folder(path)
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs)), self._full(path)

    def _full(self, path: str) -> str:
        """The path as the file system takes it.

        Raises:
            WorkspaceError: it would not be below the root, or a file system may change it.
        """
        if not path:
            return self._root
        steps = path.rstrip("/").split("/")
        if {"", ".", ".."} & {*steps} or _UNUSABLE.search(path):
            raise WorkspaceError(f"{path!a} cannot be a file of the workspace {self.url}")
        return f"{self._root.rstrip('/')}/{path}"

    @contextlib.contextmanager
    def _explained(self, path: str, done: str) -> Iterator[None]:
        """Turn what goes wrong with `path`, which is not `done`, into one sentence."""
        where = self.location(path)
        try:
            yield
        except Exception as error:  # each library has kinds of its own, such as botocore's
            number = getattr(error, "errno", None)
            if isinstance(error, FileNotFoundError) and done == "read":
                raise MissingError(f"{where} is missing") from None
            if number in (errno.ENOSPC, errno.EDQUOT):
                doing = "writing" if done == "written" else "copying"
                raise WorkspaceError(
                    f"the disk is full, {doing} {where}: free some space and give the same "
                    "command again; what is finished is kept"
                ) from None
            sentence = f"{where} cannot be {done}: {reason(error, self.url)}"
            if not self.is_local:
                raise StorageError(
                    f"{sentence}; check the URL, the credentials and what they allow"
                ) from None
            if not isinstance(error, OSError):
                raise
            raise WorkspaceError(sentence) from None

    # ---- whole files -----------------------------------------------------------

    def exists(self, path: str) -> bool:
        full = self._full(path)
        with self._explained(path, "read"):
            return bool(self._fs.exists(full))

    def read_bytes(self, path: str) -> bytes:
        """Content of a file.

        Raises:
            MissingError: there is no such file.
            WorkspaceError: it cannot be read.
        """
        full = self._full(path)
        with self._explained(path, "read"):
            return local_files.read(full) if self.is_local else bytes(self._fs.cat_file(full))

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a whole file or nothing: a temporary name and a rename, or one PUT.

        Raises:
            WorkspaceError: the disk is full, the place cannot be written, or a folder on the way
                is a link.
        """
        full = self._full(path)
        with self._explained(path, "written"):
            if self.is_local:
                local_files.write(self._root, path, data)
            else:
                self._fs.pipe_file(full, data)

    def append_bytes(self, path: str, data: bytes) -> None:
        """Add to the end of a file, which is made if it is not there.

        Object storage cannot append, so the whole file is written again.

        Raises:
            WorkspaceError: as `write_bytes`; or the file is a link.
        """
        self._full(path)
        if not self.is_local:
            earlier = self.read_bytes(path) if self.exists(path) else b""
            self.write_bytes(path, earlier + data)
            return
        with self._explained(path, "written"):
            local_files.append(self._root, path, data)

    def open_own(self, path: str) -> int:
        """Descriptor of a local file to lock, which is made if it is not there.

        Raises:
            WorkspaceError: as `append_bytes`.
        """
        self._full(path)
        with self._explained(path, "written"):
            return local_files.open_own(self._root, path)

    def read_json(self, path: str) -> Any:
        try:
            return json.loads(self.read_bytes(path))
        except (ValueError, RecursionError, MemoryError):
            raise self.damaged(path) from None

    def write_json(self, path: str, value: Any) -> None:
        self.write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def read_array(self, path: str) -> NDArray[Any]:
        try:  # not np.load, which takes archives too
            return read_array(io.BytesIO(self.read_bytes(path)), allow_pickle=False)
        except (ValueError, EOFError, MemoryError):
            raise self.damaged(path) from None

    def tag(self, path: str) -> str | None:
        """What an object store says for a file's content; None where nothing is said."""
        with self._explained(path, "read"):
            info = {} if self.is_local else self._fs.info(self._full(path))
        return info.get("ETag") or info.get("etag")

    def damaged(self, path: str) -> WorkspaceError:
        """What to raise where a file of the workspace does not hold what was written."""
        return WorkspaceError(
            f"{self.location(path)} is damaged; give the command that made it again"
        )

    @contextlib.contextmanager
    def understanding(self, path: str) -> Iterator[None]:
        """Turn what goes wrong in a `with` block over the content of `path` into one sentence.

        Raises:
            WorkspaceError: the file does not hold what was written.
        """
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
            raise self.damaged(path) from None

    # ---- local copies ----------------------------------------------------------

    def map_array(self, path: str) -> NDArray[Any]:
        """The array of a local `.npy` file, read from disk as it is used; read-only."""
        file = Path(self._full(path))
        with self._explained(path, "read"):
            local_files.require_file(file)
            return self._mapped(path, file)

    def map_copies(self, files: Mapping[str, Mapping[str, Any]], what: str) -> list[NDArray[Any]]:
        """Arrays of remote `.npy` files, as `map_array` gives them, from copies in scratch.

        A file is copied once in a process; its disk space is free again when that ends.

        Args:
            files: size (`bytes`) and `sha256` by path.
            what: what they are, for messages.

        Raises:
            WorkspaceError: there is no room for them; or one is missing or damaged.
        """
        size = sum(one["bytes"] for one in files.values() if one["sha256"] not in _copies)
        held = sum(array.nbytes for array in _copies.values())
        if size:
            scratch.require(size, held, what)
        for path, one in files.items():
            if one["sha256"] not in _copies:
                _copies[one["sha256"]] = self._map_copy(path, one["sha256"])
        return [_copies[one["sha256"]] for one in files.values()]

    def _map_copy(self, path: str, sha256: str) -> NDArray[Any]:
        with scratch.folder() as folder:
            copy = folder / "copy.npy"
            with self._explained(path, "read"):
                self._fs.get_file(self._full(path), str(copy))
            with copy.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise self.damaged(path)
            return self._mapped(path, copy)  # a mapping outlives its file's name

    def _mapped(self, path: str, file: Path) -> NDArray[Any]:
        try:
            return open_memmap(str(file), mode="r")
        except (ValueError, EOFError):
            raise self.damaged(path) from None

    @contextlib.contextmanager
    def local_folder(self, folder: str) -> Iterator[Path]:
        """A local folder with the files of `folder`: itself, or a copy for the `with` block."""
        if self.is_local:
            found = Path(self._full(folder))
            with self._explained(folder, "read"):
                for file in found.iterdir():
                    local_files.require_file(file)
            yield found
            return
        with scratch.folder() as to:
            with self._explained(folder, "read"):
                self._fs.get(self._full(folder) + "/", f"{to}/", recursive=True)
            yield to

    # ---- folders ---------------------------------------------------------------

    def names(self, folder: str) -> list[str]:
        """Sorted names of what lies directly in `folder`; empty if there is no such folder."""
        full = self._full(folder)
        with self._explained(folder, "listed"), contextlib.suppress(*_NO_FOLDER):
            listed = self._fs.ls(full, detail=False, refresh=True)
            paths = {path.rstrip("/") for path in listed} - {full.rstrip("/")}
            return sorted(path.rsplit("/", 1)[-1] for path in paths)
        return []

    def remove(self, folder: str) -> None:
        """Remove a file or a whole folder, if it is there; of a link, the link itself."""
        full = self._full(folder)
        with self._explained(folder, "removed"), contextlib.suppress(*_NO_FOLDER):
            if self.is_local:
                local_files.remove(self._root, folder)
                return
            self._fs.rm(full, recursive=True)
            if self._fs.exists(full):
                raise PermissionError("it is still there")  # s3fs does not say so itself


_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\\]")  # a backslash parts folders for some file systems
_NO_FOLDER = (FileNotFoundError, NotADirectoryError)


def array_bytes(array: NDArray[Any]) -> bytes:
    """The array as the content of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
