"""The worker pool: one loop that keeps actors busy with items until all are done."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.cluster import Share
from g2is_ray.errors import G2isError, WorkError

log = logging.getLogger(__name__)

_TRIES = 3  # of an item that fails by itself
_LOSSES = 10  # actors lost in a row, without an item finished, before giving up
_LONGEST_PAUSE_SECONDS = 30.0
_PROGRESS_SECONDS = 15.0

Receipt = dict[str, Any]


class WorkerPool:
    """Actors of one class, each with the method `process(item) -> receipt`.

    Invariants of `run`:

    1. An item is waiting, running on one actor, done, or set aside; never two of these.
    2. An actor has at most `tasks_per_worker` items at a time, in threads of its own: with
       two, it can read and write one while it computes the other.
    3. The loss of an actor or node returns its items to the waiting ones and is never
       counted against them; Ray restarts the actor.
    4. An item that raises is tried three times, then set aside; the rest goes on.
    5. An error that is the user's to mend (`G2isError`) ends the run at once: every other
       item would end the same way.
    6. An actor is given items of the kind that it had last, for as long as some wait, and then
       of a kind that no other actor has; `affinity` says what kind an item is of.
    7. When `run` returns or raises, the actors are gone, so that their nodes can be removed.

    `process` must be idempotent: after a loss an item may already have been written.
    """

    def __init__(
        self,
        actor_class: type,
        arguments: dict[str, Any],
        share: Share,
        *,
        tasks_per_worker: int = 1,
        affinity: Callable[[Any], Any] | None = None,
    ) -> None:
        environment = {} if share.num_gpus else {"CUDA_VISIBLE_DEVICES": ""}
        self._actor_class: Any = ray.remote(actor_class)
        self._options = {
            "num_cpus": share.num_cpus,
            "num_gpus": share.num_gpus,
            "max_restarts": -1,
            "max_concurrency": tasks_per_worker,
            "runtime_env": {"env_vars": environment},
        }
        self._arguments = arguments
        self._workers = share.workers
        self._tasks_per_worker = tasks_per_worker
        self._kind = affinity or (lambda item: None)

    def run(self, items: Sequence[Any], label: str) -> dict[Any, Receipt]:
        """Process every item; returns the receipts by item.

        Args:
            items: hashable and small; what `process` is called with.
            label: what the progress lines are headed with.

        Raises:
            G2isError: raised by `process`, see 5.
            WorkError: items were set aside, or actors keep dying.
        """
        if not items:
            return {}
        actors = [
            self._actor_class.options(**self._options).remote(**self._arguments)
            for _ in range(min(self._workers, len(items)))
        ]
        try:
            return self._dispatch(actors, items, label)
        finally:
            for actor in actors:
                ray.kill(actor, no_restart=True)

    def _dispatch(self, actors: list[Any], items: Sequence[Any], label: str) -> dict[Any, Receipt]:
        waiting, idle = deque(items), deque(actors * self._tasks_per_worker)
        running: dict[Any, tuple[Any, Any]] = {}  # task -> (item, actor)
        receipts: dict[Any, Receipt] = {}
        last: dict[Any, Any] = {}  # actor -> kind of the item that it had last
        failures: Counter[Any] = Counter()
        aside: dict[Any, str] = {}
        losses = 0.0
        progress = _Progress(label, len(items))
        while waiting or running:
            while waiting and idle:  # 1, 2
                actor = idle.popleft()
                item = self._next(waiting, last.get(actor), set(last.values()))
                last[actor] = self._kind(item)
                running[actor.process.remote(item)] = item, actor
            (task, *_), _ = ray.wait(list(running), num_returns=1)
            item, actor = running.pop(task)
            idle.append(actor)
            try:
                receipts[item] = ray.get(task)
            except RayActorError as error:  # 3
                if error.actor_init_failed:  # as it would be every time
                    raise WorkError(
                        f"{label}: workers cannot start: {_last_line(error)}"
                    ) from error
                losses += 1 / self._tasks_per_worker  # each of its items says so
                log.warning("%s: lost the worker of %s: %s", label, item, _first_line(error))
                if losses > _LOSSES:
                    raise WorkError(
                        f"{label}: {losses:.0f} workers were lost in a row, the last with "
                        f"{_first_line(error)}; finished parts are kept"
                    ) from error
                waiting.append(item)
                time.sleep(min(_LONGEST_PAUSE_SECONDS, 0.5 * 2**losses))
            except RayTaskError as error:
                if isinstance(error.cause, G2isError):  # 5
                    raise error.cause from None
                failures[item] += 1
                log.warning("%s: %s failed: %s", label, item, error)
                if failures[item] < _TRIES:
                    waiting.append(item)
                else:  # 4
                    aside[item] = _first_line(error.cause or error)
            else:
                losses = 0.0
                progress.step(len(receipts))
        if aside:
            named = "; ".join(f"{item}: {why}" for item, why in list(aside.items())[:5])
            raise WorkError(
                f"{label}: {len(aside)} of {len(items)} failed {_TRIES} times ({named}); the "
                "others are done, and the same command does only these again"
            )
        return receipts

    def _next(self, waiting: deque[Any], mine: Any, taken: set[Any]) -> Any:
        """Take an item from the waiting ones."""  # 6
        kinds = [self._kind(item) for item in waiting]
        free = (i for i, kind in enumerate(kinds) if kind not in taken)
        at = kinds.index(mine) if mine in kinds else next(free, 0)
        item = waiting[at]
        del waiting[at]
        return item


class _Progress:
    """A log line every so often: done, total, and what is left at this speed."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total = label, total
        self._began = self._said = time.monotonic()

    def step(self, done: int) -> None:
        now = time.monotonic()
        if done < self._total and now - self._said < _PROGRESS_SECONDS:
            return
        self._said = now
        left = (now - self._began) / done * (self._total - done)
        log.info("%s: %d of %d done, about %.0f s left", self._label, done, self._total, left)


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
