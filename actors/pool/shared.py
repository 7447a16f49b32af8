"""Whether a worker on another node works on the workspace that the driver sees."""

from __future__ import annotations

import uuid

from g2is_ray.errors import WorkspaceError
from g2is_ray.workspace.workspace import Workspace

_REMEDY = "put the workspace where every node reaches it: a shared file system or object storage"


class SharedWorkspace:
    """A workspace that all workers must share with the driver.

    A worker leaves a mark in it and the driver looks for it. This shows a folder that only
    bears the same name, and a place that cannot be written, before hours are spent.
    """

    def __init__(self, url: str) -> None:
        self._workspace = Workspace(url)

    def leave_mark(self, host: str) -> str:
        """On the worker: the name of a file that it has written.

        Raises:
            WorkspaceError: the workspace is not there, or cannot be written.
        """
        if not self._workspace.stages():
            raise self._unseen(host)
        mark = f".seen-by-worker-{uuid.uuid4().hex}"
        try:
            self._workspace.write_bytes(mark, b"")
        except WorkspaceError as error:
            raise WorkspaceError(f"node {host}: {error}") from None
        return mark

    def find(self, mark: str, host: str) -> None:
        """On the driver: find the worker's mark, and remove it.

        Raises:
            WorkspaceError: it is not there.
        """
        if not self._workspace.exists(mark):
            raise self._unseen(host)
        self._workspace.remove(mark)

    def _unseen(self, host: str) -> WorkspaceError:
        where = self._workspace.location("")
        return WorkspaceError(f"node {host} does not see the workspace {where}: {_REMEDY}")
