"""What a user sees of a pool: a progress bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]
from tqdm.contrib.logging import logging_redirect_tqdm  # type: ignore[import-untyped]

log = logging.getLogger(__name__)

_LINES = {
    "progress": (
        logging.INFO,
        "{done} of {total} done{pace}; workers: {ready} ready, {pending} pending, {lost} lost; "
        "{retries} retries",
    ),
    "worker_ready": (logging.DEBUG, "worker {worker} is ready on {host}"),
    "worker_lost": (
        logging.WARNING,
        "lost worker {worker} on {host}, which had {items}: {reason}",
    ),
    "worker_never_ready": (logging.WARNING, "worker {worker} died before it was ready: {reason}"),
    "waiting": (logging.INFO, "waiting for {workers} workers of {request}: {reason}"),
    "on_demand": (
        logging.WARNING,
        "no spot machine for {workers} workers in {seconds} s: asking for on-demand ones",
    ),
    "part_done": (logging.DEBUG, "{item} done in {seconds:.1f} s"),
    "part_failed": (logging.WARNING, "{item} failed, try {tries}: {reason}"),
    "part_set_aside": (logging.ERROR, "giving up on {item}: it {reason}"),
    "part_started_twice": (
        logging.WARNING,
        "{item} has run for {seconds:.0f} s, others took {usual:.0f} s: starting it on a second "
        "worker too",
    ),
    "part_damaged": (logging.WARNING, "{item} was written by two workers at once: retrying it"),
}


class Progress:
    """The progress of one work list: a context manager that is told the pool's events.

    Args:
        label: name of the work.
        total: number of items.
        stream: where a bar is drawn if the stream is a terminal; left out, stderr.
    """

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self.label, self._total = label, total
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._at_end = contextlib.ExitStack()

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            bar = tqdm(
                total=self._total,
                desc=self.label,
                unit=" parts",
                file=self._stream,
                dynamic_ncols=True,
                smoothing=0,  # the mean rate: parallel parts end in bursts
            )
            self._bar = self._at_end.enter_context(bar)
            self._at_end.enter_context(logging_redirect_tqdm())  # log lines go above the bar
        return self

    def __exit__(self, *_: object) -> None:
        self._at_end.close()

    def on_event(self, name: str, facts: dict[str, Any]) -> None:
        """Show an event of the pool."""
        if self._bar is None:
            log_event(name, facts)
            return
        if name == "progress":
            self._bar.n = facts["done"]
            self._bar.set_postfix_str(
                "workers: {ready} ready, {pending} pending, {lost} lost".format_map(facts)
            )
            return
        log_event(name, facts)
        if name == "part_done":
            self._bar.update()


def log_event(name: str, facts: dict[str, Any]) -> None:
    """Log an event of a pool as a line that begins with the label."""
    level, line = _LINES[name]
    if name == "progress":
        facts = facts | {"pace": _pace(**facts)}
    elif name == "worker_lost":
        facts = facts | {"items": " and ".join(facts["items"]) or "nothing to do"}
    log.log(level, "%s: %s", facts["label"], line.format_map(facts))


def _pace(done: int, total: int, seconds: float, **_: Any) -> str:
    if not done:
        return ""
    left = seconds / done * (total - done)
    return f", {60 * done / seconds:.1f} a minute, about {left:.0f} s left"
