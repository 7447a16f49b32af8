"""What workers print, in a file of the workspace for each stage, not on the terminal."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from g2is_ray.errors import G2isError
from g2is_ray.workspace.workspace import Workspace

log = logging.getLogger(__name__)

_HELD_SECONDS = 10.0  # object storage cannot append, so each write is of the whole file


class WorkerLog:
    """Appends the lines that workers print to `logs/STAGE.log` of a workspace.

    Ray Train and transformers' Trainer print many lines per training; a user rarely needs them.
    With debugging on, the lines reach the terminal, as Ray prints them.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._stage = "workers"
        self._held: list[str] = []
        self._wrote = time.monotonic()
        self._refused = False
        self._lock = threading.Lock()  # lines come in a thread of Ray

    @property
    def file(self) -> str:
        """The file of the stage that is running."""
        return f"logs/{self._stage}.log"

    @contextlib.contextmanager
    def taking(self) -> Iterator[None]:
        """Take the output of workers for the `with` block, in which Ray starts and ends."""
        if log.isEnabledFor(logging.DEBUG):
            yield
            return
        from actors.ray_internals import worker_output_to

        try:
            with worker_output_to(self.take):
                yield
        finally:
            self._write()

    def begin(self, stage: str) -> None:
        """Write later lines into the file of `stage`."""
        if stage != self._stage:
            self._write()
            self._stage = stage

    def take(self, line: str) -> None:
        """Add a line, which is written within some seconds."""
        with self._lock:
            self._held.append(line)
        if time.monotonic() - self._wrote >= _HELD_SECONDS:
            self._write()

    def _write(self) -> None:
        with self._lock:
            lines, self._held = self._held, []
            self._wrote = time.monotonic()
            if not lines:
                return
            try:
                data = "".join(line + "\n" for line in lines).encode(errors="replace")
                self._workspace.storage.append_bytes(self.file, data)
            except G2isError as error:
                if not self._refused:
                    log.warning("%s cannot be written: %s; going on without it", self.file, error)
                self._refused = True
