"""What happens to a workspace, as lines of its `events.jsonl`."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

from g2is_ray import __version__
from g2is_ray.errors import G2isError
from g2is_ray.workspace.workspace import Workspace

log = logging.getLogger(__name__)

FILE = "events.jsonl"
_HELD_SECONDS = 10.0  # object storage cannot append, so that each write is of the whole file
_OF_RECEIPT = ("rows", "tokens", "seconds")


class EventLog:
    """Appends events to a workspace's `events.jsonl`, those of some seconds at a time.

    A line is a JSON object with `time` (UTC), `event` and the event's facts; those of the pool of
    workers are listed at `actors.pool.pool.OnEvent`. The log is for people: nothing reads it again,
    and storage that refuses it does not end a run.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._held: list[str] = []
        self._wrote = time.monotonic()

    @contextlib.contextmanager
    def around(self, command: str) -> Iterator[None]:
        """Tell that a command began, and how it ended."""
        began = time.monotonic()
        self.tell("command_begun", {"command": command, "version": __version__})
        try:
            yield
        except BaseException as error:
            self._end("command_failed", command, began, reason=str(error) or type(error).__name__)
            raise
        self._end("command_done", command, began)

    def _end(self, event: str, command: str, began: float, **facts: Any) -> None:
        seconds = round(time.monotonic() - began, 3)
        self.tell(event, {"command": command, "seconds": seconds, **facts})
        self._write()

    def tell(self, event: str, facts: dict[str, Any]) -> None:
        """Log an event; facts that JSON does not know are written as text."""
        if receipt := facts.get("receipt"):
            kept = {name: receipt[name] for name in _OF_RECEIPT if name in receipt}
            facts = facts | {"receipt": kept}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self._held.append(json.dumps({"time": now, "event": event, **facts}, default=str))
        if time.monotonic() - self._wrote >= _HELD_SECONDS:
            self._write()

    def _write(self) -> None:
        lines = "".join(line + "\n" for line in self._held)
        self._held, self._wrote = [], time.monotonic()
        try:
            self._workspace.storage.append_bytes(FILE, lines.encode())
        except G2isError as error:
            log.warning("events are not written: %s", error)
