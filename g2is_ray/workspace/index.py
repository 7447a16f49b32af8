"""The index of a workspace: `workspace.json`, with the record of each stage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from g2is_ray.errors import MissingError, StorageError, WorkspaceError
from g2is_ray.workspace.records import FORMAT, Record, check_index
from g2is_ray.workspace.storage import Storage

INDEX = "workspace.json"
_MISSING = "missing"


class Index:
    """Reads and changes the records of all stages.

    Every call reads the file, except within `kept`, which a command enters once it is the only
    one that writes the workspace. Other processes, such as workers, have an index of their own.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._keeps = False
        self._shared = False
        self._stages: dict[str, Record] | None = None
        self._version: str | None = None  # of the file that `_stages` was read from or written to

    @contextlib.contextmanager
    def kept(self, *, shared: bool) -> Iterator[None]:
        """Read the file only once during the `with` block, and write each change at once.

        Args:
            shared: other processes may write the file during the block. A change is then applied
                to the records that the file holds at that time, so that no record is lost.
        """
        self._keeps, self._shared = True, shared
        try:
            yield
        finally:
            self._keeps, self._stages = False, None

    def stages(self) -> dict[str, Record]:
        """Record of each stage, in the order in which the stages were begun.

        Raises:
            WorkspaceError: the file is damaged, or an earlier version wrote it.
        """
        if self._stages is not None:
            return self._stages
        if not self._keeps:
            return self._read()
        version = self._stored_version()  # before reading, so that it is never too recent
        self._stages, self._version = self._read(), version
        return self._stages

    def change(self, records: Mapping[str, Record | None]) -> None:
        """Write the records of some stages; None removes a stage's record."""
        if self._is_outdated():
            self._stages = None
        changed = {**self.stages(), **records}
        stages = {name: record for name, record in changed.items() if record is not None}
        self._storage.write_json(INDEX, {"format": FORMAT, "stages": stages})
        if self._keeps:
            self._stages, self._version = stages, self._stored_version()

    def _is_outdated(self) -> bool:
        """Whether another process may have written the file since this one did."""
        if not self._shared or self._stages is None:
            return False
        version = self._stored_version()
        return version is None or version != self._version

    def _stored_version(self) -> str | None:
        """Tag of the stored file if it is shared; None where the storage has no tags."""
        if not self._shared:
            return None
        try:
            return self._storage.tag(INDEX)
        except MissingError:
            return _MISSING

    def _read(self) -> dict[str, Record]:
        try:
            index = self._storage.read_json(INDEX)
        except MissingError:
            return {}
        except StorageError:
            raise
        except WorkspaceError:
            raise self._damaged("it is not JSON") from None
        if isinstance(index, dict) and index.get("format") in range(FORMAT):
            raise WorkspaceError(
                f"{self._storage.location(INDEX)} is not of format {FORMAT} but "
                f"{index['format']}, which an earlier version wrote and which knows files and "
                "models by name only: use another workspace"
            )
        try:
            stages: dict[str, Record] = check_index(index)["stages"]
        except ValueError as error:
            raise self._damaged(str(error)) from None
        return stages

    def _damaged(self, why: str) -> WorkspaceError:
        return WorkspaceError(
            f"{self._storage.location(INDEX)} is damaged ({why}), so it does not say what made "
            "the rest: restore it, or use another workspace"
        )
