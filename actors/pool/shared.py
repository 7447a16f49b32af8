"""Whether a worker on another node works on the workspace that the driver sees."""

from __future__ import annotations

import uuid

from g2is_ray.errors import WorkspaceError
from g2is_ray.workspace.workspace import Workspace

_REMEDY = "put the workspace where every node reaches it: a shared file system or object storage"


class SharedWorkspace:
    """A workspace that all workers must share with the driver.

    A worker writes a file into the workspace, its mark, and the driver looks for the mark. A
    folder that only has the same name, or that cannot be written, is so found before the work.
    """

    def __init__(self, url: str) -> None:
        self._workspace = Workspace(url)

    def leave_mark(self, host: str) -> str:
        """Write a mark, on the worker; returns the name of the file.

        Raises:
            WorkspaceError: the workspace does not exist here, or cannot be written.
        """
        if not self._workspace.stages():
            raise self._unseen(host)
        mark = f".seen-by-worker-{uuid.uuid4().hex}"
        try:
            self._workspace.storage.write_bytes(mark, b"")
        except WorkspaceError as error:
            raise WorkspaceError(f"node {host}: {error}") from None
        return mark

    def find(self, mark: str, host: str) -> None:
        """Find a worker's mark, on the driver, and remove it.

        Raises:
            WorkspaceError: the mark is missing.
        """
        if not self._workspace.storage.exists(mark):
            raise self._unseen(host)
        self._workspace.storage.remove(mark)

    def _unseen(self, host: str) -> WorkspaceError:
        where = self._workspace.storage.location("")
        return WorkspaceError(f"node {host} does not see the workspace {where}: {_REMEDY}")
