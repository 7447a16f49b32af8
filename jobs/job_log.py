"""Follow a job on a cluster: print its log once and in order, across lost connections."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from g2is_ray import __version__
from g2is_ray.errors import WorkError

log = logging.getLogger(__name__)

LOST = 75
"""Exit status if the job cannot be followed any more, but goes on as far as is known."""

_PATIENCE_SECONDS = 600.0  # that the cluster may be unreachable
_PAUSES_SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)  # between tries; the last pause repeats
_LOOK_SECONDS = 10.0  # between requests for the state of a job with a silent log
_REST_SECONDS = 5.0  # that the last lines of a finished job may take to arrive
_KEPT_CHARACTERS = 4000  # of the end of the log, which tells why a job failed

_NOT_INSTALLED = re.compile(r"No module named '?(jobs|actors|g2is_ray)\b.*")
_UNKNOWN_JOB = re.compile(r"status code 404.*does not exist", re.DOTALL)
_NO_PYTHON = re.compile(r"python: (command )?not found")

CONNECTION_ERRORS = (OSError, RuntimeError, aiohttp.ClientError, TimeoutError)


class Client(Protocol):
    """The methods of Ray's JobSubmissionClient that are used."""

    def get_job_info(self, job: str) -> Any: ...
    def get_job_logs(self, job: str) -> str: ...
    def tail_job_logs(self, job: str) -> AsyncIterator[str]: ...


def follow(
    client: Client,
    job: str,
    address: str,
    *,
    patience_seconds: float = _PATIENCE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    show: Callable[[str], None] = lambda text: print(text, end="", flush=True),
) -> int:
    """Print a job's log to its end; returns its exit status, or `LOST`.

    Ray sends the log from its beginning with each connection, so lines that were printed are
    skipped. A lost connection is retried until the cluster is unreachable for `patience_seconds`;
    the state of the job is then unknown, which is not a failure.

    Raises:
        WorkError: the job was stopped, ended without an exit status, could not start because the
            project is not installed, or is unknown to the cluster.
        AuthenticationError: the cluster no longer accepts the token.
    """
    printed = _Printed(show)
    waited, tries = 0.0, 0
    while waited < patience_seconds:
        try:
            info = asyncio.run(_print_log(client, job, printed))
        except AuthenticationError:
            raise
        except CONNECTION_ERRORS as error:
            if _UNKNOWN_JOB.search(str(error)):
                raise WorkError(
                    f"the cluster at {address} no longer knows job {job}: its head was "
                    "replaced; submit the job again to resume"
                ) from None
            if not tries:
                log.warning("lost the connection to %s, reconnecting: %s", address, error)
        else:
            if info is not None:
                return _outcome(info, job, printed.end)
            waited, tries = 0.0, 0
        pause = _PAUSES_SECONDS[min(tries, len(_PAUSES_SECONDS) - 1)]
        sleep(pause)
        waited, tries = waited + pause, tries + 1
    log.error(
        "the cluster at %s was unreachable for %.0f s; job %s goes on, as far as is known; to "
        "follow the job: ray job logs --follow --address %s %s",
        *(address, waited, job, address, job),
    )
    return LOST


class _Printed:
    """The part of a log that is printed."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.count = 0  # characters
        self.end = ""
        self._show = show

    def show_from(self, position: int, text: str) -> int:
        """Print the new part of a log's `text` at `position`; returns the position after it."""
        new = text[max(0, self.count - position) :]
        position += len(text)
        if new:
            self._show(new)
            self.count = position
            self.end = (self.end + new)[-_KEPT_CHARACTERS:]
        return position


async def _print_log(client: Client, job: str, printed: _Printed) -> Any:
    """Print a log until its connection ends; returns the job's info if the job ended, or None.

    Raises:
        One of CONNECTION_ERRORS: the cluster cannot be asked for the job.
    """
    tail = asyncio.ensure_future(_print_tail(client, job, printed))
    try:
        while True:
            await asyncio.wait({tail}, timeout=_LOOK_SECONDS)
            info = await asyncio.to_thread(client.get_job_info, job)
            ended = info.status.is_terminal()
            if ended:
                await asyncio.wait({tail}, timeout=_REST_SECONDS)
            if ended or tail.done():  # the whole log, where no connection stays open
                printed.show_from(0, await asyncio.to_thread(client.get_job_logs, job))
                return info if ended else None
    finally:
        tail.cancel()
        await asyncio.gather(tail, return_exceptions=True)


async def _print_tail(client: Client, job: str, printed: _Printed) -> None:
    position = 0
    async for text in client.tail_job_logs(job):
        position = printed.show_from(position, text)


def _outcome(info: Any, job: str, log_end: str) -> int:
    """Return the exit status of a job that ended."""
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        raise WorkError(f"job {job} was stopped; submit it again to resume")
    if found := _NOT_INSTALLED.search(log_end) or _NO_PYTHON.search(log_end):
        raise WorkError(
            f"`python` on the head of the cluster does not have g2is-ray ({found[0].strip()}):"
            f" install g2is-ray {__version__} on every node, as docs/operations.md says"
        )
    if not info.driver_exit_code or info.driver_exit_code < 0:
        why = (info.message or "unknown reason").splitlines()[0]
        raise WorkError(f"job {job} failed: {why}; submit it again to resume")
    return int(info.driver_exit_code)
