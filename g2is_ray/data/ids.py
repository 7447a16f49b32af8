"""Ids: unique row ids within a set, although many files number their rows from 0."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import tempfile
from pathlib import Path

from g2is_ray.data.sources import clip
from g2is_ray.errors import InputError, WorkspaceError

log = logging.getLogger(__name__)


class Ids:
    """File and line of each id, stored on disk so that memory does not grow with the pool.

    Many data sets number the rows of each file from 0, so an id that an earlier file has gets its
    file's name as a prefix. An id that occurs twice in a file is refused. Rows added in the same
    order get the same ids.
    """

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(str(folder / "ids.sqlite"), isolation_level=None)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("BEGIN")
        self._db.execute(
            "CREATE TABLE ids (key BLOB PRIMARY KEY, file TEXT, line INTEGER) WITHOUT ROWID"
        )
        self._qualified = ""  # last file that the log named

    def add(self, own: str, file: str, line: int) -> str:
        """The unique id of the row: `own`, or `FILE#ID` if another file has `own`.

        Raises:
            InputError: the id occurs twice in the file.
            WorkspaceError: the disk is full.
        """
        first = self._insert(own, file, line)
        if first is None:
            return own
        if first[0] != file:
            if file != self._qualified:
                self._qualified = file
                log.warning(
                    "%s: has ids that %s has too; they get the name of the file in front, as in %s",
                    *(file, first[0], clip(repr(f"{file}#{own}"), 200)),
                )
            qualified = f"{file}#{own}"
            first = self._insert(qualified, file, line)
            if first is None:
                return qualified
        remedy = (
            "rows without an id of their own are named after their file, so rename it"
            if own == f"{file}:{line}"
            else "give every row of a file an id of its own, or none"
        )
        raise InputError(
            f"{file}:{line}: id {clip(repr(own), 100)} was already used at "
            f"{first[0]}:{first[1]}; {remedy}"
        )

    def _insert(self, name: str, file: str, line: int) -> tuple[str, int] | None:
        """File and line of an existing id; None if the id is new and was inserted."""
        key = hashlib.blake2b(name.encode(), digest_size=16).digest()
        try:
            self._db.execute("INSERT INTO ids VALUES (?, ?, ?)", (key, file, line))
        except sqlite3.IntegrityError:
            found = self._db.execute("SELECT file, line FROM ids WHERE key = ?", (key,)).fetchone()
            return str(found[0]), int(found[1])
        except sqlite3.OperationalError as error:
            raise WorkspaceError(
                f"{tempfile.gettempdir()} cannot hold the list of ids: {error}; free some space, "
                "or set TMPDIR to a larger place, and give the same command again"
            ) from None
        return None

    def close(self) -> None:
        self._db.close()
