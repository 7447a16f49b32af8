"""The worker pool: one loop that keeps actors busy with items until all are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.connection.cluster import Share
from actors.pool.crew import Crew, Tell, Worker, reason
from actors.pool.placement import is_there
from actors.pool.progress import log_event
from actors.pool.shared import SharedWorkspace
from actors.pool.worklist import Receipt, WorkList
from g2is_ray.errors import G2isError, WorkError

_TICK_SECONDS = 1.0
_PROGRESS_SECONDS = 15.0
_DEATH_SECONDS = 30.0  # that a worker may take to end

OnEvent = Callable[[str, dict[str, Any]], None]
"""Called with an event's name and its facts, `label` among them.

progress (done, total, seconds, ready, pending, lost, retries), every so often and at the end;
worker_ready (worker, host, market); worker_never_ready (worker, reason);
worker_lost (worker, host, items, reason); waiting (workers, request, reason);
on_demand (workers, seconds);
part_done (item, worker, seconds, receipt); part_failed (item, worker, tries, reason);
part_set_aside (item, reason); part_started_twice (item, worker, seconds, usual);
part_damaged (item).
"""


class WorkerPool:
    """Actors of one class, each with the method `process(item) -> receipt`.

    Invariants of `run`:

    1. An item is waiting, running, done, or set aside; never two of these. It runs on one
       worker, or on two if it takes far longer than others (8).
    2. Items are given to workers that are there, up to `tasks_per_worker` at a time, in threads
       of their own: with two, a worker can read and write one while it computes the other.
       Workers that are still pending are waited for by nobody; see `Crew`.
    3. The loss of a worker returns its items to the waiting ones, and is never counted against
       them. But an item whose worker's process has ended five times, on nodes that lived on, is
       set aside: it ends them, by the memory that it takes, say. It runs alone by then.
    4. An item that raises is tried three times, then set aside; the rest goes on.
    5. An error that is the user's to mend (`G2isError`) ends the run at once: every other
       item would end the same way. So does what can never run, and a worker on a node with other
       code than the driver's or with a GPU that torch cannot use: it would write other numbers.
    6. An actor is given items of the kind that it had last, for as long as some wait, and then
       of a kind that no other actor has; `affinity` says what kind an item is of.
    7. When `run` returns or raises, the actors are gone, so that their nodes can be removed.
    8. An item that takes three times as long as others is started a second time on an idle
       worker. The first receipt wins and the other worker is replaced, so that it neither
       blocks nor overwrites; what is written is then checked. A worker that takes ten times as
       long hangs and is replaced; with each time, the item is given twice as long.

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
        workspace: SharedWorkspace | None = None,
        written: Callable[[Any], Receipt | None] | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        """Describe a pool; nothing is started before `run`.

        Args:
            workspace: what every worker must see before it is given items.
            written: the receipt of an item if its files are whole, asked for where two workers
                may have written at once; left out, the one that was returned is believed.
            on_event: called by the loop as things happen, after they are logged; must be quick.
        """
        environment = {} if share.num_gpus else {"CUDA_VISIBLE_DEVICES": ""}
        options: dict[str, Any] = {
            "max_concurrency": tasks_per_worker,
            "runtime_env": {"env_vars": environment},
        }
        self._actor_class: Any = ray.remote(**options)(actor_class)
        self._arguments, self._share, self._workspace = arguments, share, workspace
        self._tasks_per_worker = tasks_per_worker
        self._kind = affinity or (lambda item: None)
        self._written, self._on_event = written, on_event

    def run(self, items: Sequence[Any], label: str) -> dict[Any, Receipt]:
        """Process every item; returns the receipts by item.

        Args:
            items: hashable and small; what `process` is called with.
            label: of the work, in log lines and errors.

        Raises:
            G2isError: raised by `process`, see 5.
            WorkError: items were set aside, or no worker can start or run.
        """
        if not items:
            return {}

        def tell(event: str, **facts: Any) -> None:
            facts["label"] = label
            log_event(event, facts)
            if self._on_event:
                self._on_event(event, facts)

        crew = Crew(self._actor_class, self._arguments, self._share, self._workspace, tell)
        work = WorkList(items, self._kind)
        try:
            _Run(crew, work, self._share.workers, self._tasks_per_worker, self._written, tell).go()
        except WorkError as error:
            raise WorkError(f"{label}: {error}") from error.__cause__
        finally:
            crew.dismiss_all()
        if work.aside:
            named = "; ".join(f"{item} {why}" for item, why in list(work.aside.items())[:5])
            raise WorkError(
                f"{label}: {len(work.aside)} of {len(items)} set aside ({named}); the others are "
                "done, and the same command does only these again"
            )
        return work.receipts


class _Run:
    """The loop of one `WorkerPool.run`."""

    def __init__(
        self,
        crew: Crew,
        work: WorkList,
        workers: int,
        tasks_per_worker: int,
        written: Callable[[Any], Receipt | None] | None,
        tell: Tell,
    ) -> None:
        self._crew, self._work, self._tell = crew, work, tell
        self._workers, self._tasks_per_worker = workers, tasks_per_worker
        self._written = written
        self._began = self._said = time.monotonic()
        self._lost = 0

    def go(self) -> None:
        crew, work = self._crew, self._work
        while work.left:
            self._assign()
            crew.ask(min(self._workers - len(crew.ready), work.waiting))
            self._settle_next()
            self._look_after_stragglers()
            crew.look_after_pending()
            self._say_progress()

    # ---- giving items ------------------------------------------------------------

    def _assign(self) -> None:
        """Give waiting items to workers that are there."""
        while self._work.waiting:
            free = [worker for worker in self._crew.ready if self._has_room(worker)]
            worker = min(free, key=lambda one: len(one.tasks), default=None)
            if worker is None:
                return
            if worker.tasks and self._work.waiting <= len(self._crew.pending):
                return  # left for workers to come, which would have nothing else
            taken = {other.kind for other in self._crew.ready}
            found = self._work.take(worker.kind, taken, alone=not worker.tasks)
            if found is None:
                return
            item, worker.kind = found
            self._start(worker, item)

    def _has_room(self, worker: Worker) -> bool:
        alone = any(self._work.is_suspect(item) for item in worker.items())
        return not alone and len(worker.tasks) < self._tasks_per_worker

    def _start(self, worker: Worker, item: Any) -> None:
        worker.tasks[worker.actor.process.remote(item)] = item, time.monotonic()

    # ---- what came of it ---------------------------------------------------------

    def _settle_next(self) -> None:
        """Wait a moment for a worker to come or for an item to end, and see what it was."""
        coming = {worker.hello: worker for worker in self._crew.pending}
        running = {task: worker for worker in self._crew.ready for task in worker.tasks}
        if not coming and not running:  # a pause after failed starts
            time.sleep(_TICK_SECONDS)
            return
        for task in ray.wait([*running, *coming], num_returns=1, timeout=_TICK_SECONDS)[0]:
            if task in coming:
                self._crew.arrive(coming[task])
            else:
                self._settle(running[task], task)

    def _settle(self, worker: Worker, task: Any) -> None:
        item, began = worker.tasks[task]
        seconds = time.monotonic() - began
        try:
            receipt = ray.get(task)
        except RayTaskError as error:
            if isinstance(error.cause, G2isError):  # 5
                raise error.cause from None
            del worker.tasks[task]
            self._failed(worker, item, reason(error))
        except RayError as error:
            self._lose(worker, reason(error), died=is_there(worker.node_id))
        else:
            del worker.tasks[task]
            self._work.done(item, receipt, seconds)
            if self._is_whole(item):
                self._tell(
                    "part_done", item=item, worker=worker.number, seconds=seconds, receipt=receipt
                )

    def _failed(self, worker: Worker, item: Any, why: str) -> None:  # 4
        if self._workers_of(item):
            return  # as nothing, while another may still do it
        self._work.failed(item, why)
        tries = self._work.failures[item]
        self._tell("part_failed", item=item, worker=worker.number, tries=tries, reason=why)
        self._say_if_aside(item)

    def _lose(self, worker: Worker, why: str, *, died: bool = False) -> None:  # 3
        """Forget a worker; `died` says that its process ended by itself."""
        items = worker.items()
        self._crew.dismiss(worker)
        self._lost += 1
        named = [str(item) for item in items]
        self._tell("worker_lost", worker=worker.number, host=worker.host, items=named, reason=why)
        for item in items:
            if self._workers_of(item) or item in self._work.receipts:
                continue
            if died:
                self._work.died(item, why)
                self._say_if_aside(item)
            else:
                self._work.give_back(item)

    def _say_if_aside(self, item: Any) -> None:
        if item in self._work.aside:
            self._tell("part_set_aside", item=item, reason=self._work.aside[item])

    def _workers_of(self, item: Any) -> list[Worker]:
        return [worker for worker in self._crew.ready if item in worker.items()]

    # ---- stragglers --------------------------------------------------------------

    def _look_after_stragglers(self) -> None:  # 8
        now = time.monotonic()
        for worker in list(self._crew.ready):
            for item, began in list(worker.tasks.values()):
                seconds = now - began
                if self._work.is_hung(item, seconds):
                    self._work.hung(item)
                    self._lose(worker, f"{item} did not end in {seconds:.0f} s")
                    break
                idle = [other for other in self._crew.ready if not other.tasks]
                if idle and self._work.is_slow(seconds) and len(self._workers_of(item)) == 1:
                    self._start(idle[0], item)
                    self._tell(
                        "part_started_twice",
                        item=item,
                        worker=idle[0].number,
                        seconds=seconds,
                        usual=self._work.usual_seconds,
                    )

    def _is_whole(self, item: Any) -> bool:
        """End whoever else does a finished item; two at once may have mixed up its files."""
        others = self._workers_of(item)
        for other in others:
            tasks = [task for task, (its, _) in other.tasks.items() if its == item]
            self._lose(other, f"another worker has done {item}")
            ray.wait(tasks, timeout=_DEATH_SECONDS)
        if others and self._written and self._written(item) is None:
            self._tell("part_damaged", item=item)
            self._work.undo(item)
            return False
        return True

    # ---- progress ----------------------------------------------------------------

    def _say_progress(self) -> None:
        now = time.monotonic()
        if self._work.left and now - self._said < _PROGRESS_SECONDS:
            return
        self._said = now
        self._tell(
            "progress",
            done=len(self._work.receipts),
            total=self._work.total,
            seconds=now - self._began,
            ready=len(self._crew.ready),
            pending=len(self._crew.pending),
            lost=self._lost,
            retries=self._work.failures.total(),
        )
