"""What is logged of a pool's events."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)

_LINES = {
    "progress": (
        logging.INFO,
        "{done} of {total} done{pace}; workers: {ready} there, {pending} pending, {lost} lost; "
        "{retries} retries",
    ),
    "worker_ready": (logging.DEBUG, "worker {worker} is ready on {host}"),
    "worker_lost": (
        logging.WARNING,
        "lost worker {worker} on {host}, which had {items}: {reason}",
    ),
    "worker_never_ready": (logging.WARNING, "worker {worker} died before it was ready: {reason}"),
    "waiting": (logging.INFO, "waits for {workers} workers of {request}: {reason}"),
    "on_demand": (
        logging.WARNING,
        "no spot machine for {workers} workers in {seconds} s: asks for on-demand ones",
    ),
    "part_done": (logging.DEBUG, "{item} done in {seconds:.1f} s"),
    "part_failed": (logging.WARNING, "{item} failed, try {tries}: {reason}"),
    "part_set_aside": (logging.ERROR, "{item} is set aside: it {reason}"),
    "part_started_twice": (
        logging.WARNING,
        "{item} has run for {seconds:.0f} s, others took {usual:.0f}: a second worker does it too",
    ),
    "part_damaged": (logging.WARNING, "{item} was written by two workers at once: done again"),
}


def log_event(name: str, facts: dict[str, Any]) -> None:
    """Log an event of a pool as a line that begins with the stage."""
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
