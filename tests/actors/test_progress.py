"""A pool's progress: a bar on a terminal, log lines elsewhere."""

import io
import logging
import sys

import pytest

from actors.pool.progress import Progress

FACTS = {"seconds": 60.0, "ready": 2, "pending": 1, "lost": 0, "retries": 0}


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def root(logging_as_before):
    """The root logger with a handler that writes to stderr, as in the command."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)

    def log_to(stream):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("LOG %(message)s"))
        root.handlers[:] = [handler]

    return log_to


def finish(progress, done, total):
    for number in range(done):
        facts = {"label": "graph", "item": number, "seconds": 1.0, "receipt": {}}
        progress.on_event("part_done", facts)
    progress.on_event("progress", {"label": "graph", "done": done, "total": total, **FACTS})


def test_a_terminal_shows_a_bar_with_rate_and_time_left(root, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    root(terminal)
    with Progress("graph", 4) as progress:
        finish(progress, 3, 4)
        progress.on_event("part_failed", {"label": "graph", "item": 3, "tries": 1, "reason": "x"})
    shown = terminal.getvalue()
    last = shown.rstrip("\n").rsplit("\r", 1)[1]
    assert "graph:  75%" in last
    assert "3/4" in last
    assert "parts" in last.partition("<")[2]  # behind the time left
    assert "workers: 2 ready, 1 pending, 0 lost" in last
    assert "LOG graph: 3 of 4 done" not in shown
    assert "\rLOG graph: 3 failed, try 1: x\n" in shown  # on a line of its own


def test_another_stream_gets_log_lines_and_no_bar(root):
    stream = io.StringIO()
    root(stream)
    with Progress("graph", 4, stream) as progress:
        finish(progress, 3, 4)
    assert stream.getvalue() == (
        "LOG graph: 3 of 4 done, 3.0 a minute, about 20 s left; workers: 2 ready, 1 pending, "
        "0 lost; 0 retries\n"
    )


def test_a_part_that_is_undone_counts_as_not_done(monkeypatch, root):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    root(terminal)
    with Progress("graph", 2) as progress:
        finish(progress, 2, 2)
        progress.on_event("progress", {"label": "graph", "done": 1, "total": 2, **FACTS})
    assert "1/2" in terminal.getvalue().rstrip("\n").rsplit("\r", 1)[1]
