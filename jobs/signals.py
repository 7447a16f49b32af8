"""Turn Ctrl-C and requests to end into an exception, so that Ray is shut down."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LAST = 3  # number of the signal that ends the process at once
_AGAIN_SECONDS = 5.0  # after which the exception is raised again, if a library caught it


class Signals:
    """Handles the signals that a process receives in the `with` block.

    The first signal is raised as KeyboardInterrupt, repeatedly until `noticed` sees the exception:
    libraries catch what is raised in their callbacks. The second signal is ignored, because the
    process is ending. The third one ends the process. A signal that was ignored before stays
    ignored, as `nohup` requires.
    """

    def __init__(self) -> None:
        self._first = 0
        self._count = 0
        self._before: dict[int, Any] = {}

    @property
    def status(self) -> int:
        """The exit status of a process that a signal ended, by the convention of shells."""
        return 128 + (self._first or signal.SIGINT)

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _CAUGHT:
                handler = signal.getsignal(number)
                if handler in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self._stop)
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._stop_again)
        return self

    def __exit__(self, *_: object) -> None:
        self._disarm()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def noticed(self) -> Iterator[None]:
        """Stop raising once the exception leaves the `with` block, so that cleanup can finish."""
        try:
            yield
        except KeyboardInterrupt:
            self._disarm()
            raise

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._count += 1
        if self._count == 1:
            self._first = number
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS, _AGAIN_SECONDS)
            raise KeyboardInterrupt
        if self._count >= _LAST:
            os._exit(128 + number)

    def _stop_again(self, number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt

    def _disarm(self) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
