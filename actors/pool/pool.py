"""The worker pool: one loop that keeps actors busy with items until all are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.connection.cluster import Share
from actors.pool.limits import PoolLimits
from actors.pool.placement import is_there
from actors.pool.progress import Progress
from actors.pool.shared import SharedWorkspace
from actors.pool.worker_set import Tell, Worker, WorkerSet, reason
from actors.pool.worklist import Receipt, WorkList
from g2is_ray.errors import G2isError, WorkError

_TICK_SECONDS = 1.0

OnEvent = Callable[[str, dict[str, Any]], None]
"""Called with an event's name and its facts, `label` among them.

progress (done, total, seconds, ready, pending, lost, retries), at intervals and at the end;
worker_ready (worker, host, capacity); worker_never_ready (worker, reason);
worker_lost (worker, host, items, reason); waiting (workers, request, reason);
on_demand (workers, seconds);
part_done (item, worker, seconds, receipt); part_failed (item, worker, tries, reason);
part_set_aside (item, reason); part_started_twice (item, worker, seconds, usual);
part_damaged (item).
"""


class WorkerPool:
    """Actors of one class, each with the method `process(item) -> receipt`.

    A context manager: its workers serve one list of items after another, and end with the block.

        with WorkerPool(GraphWorker, order, share) as pool:
            pool.run(pairs, "graph, pair")
            pool.run(merges, "graph, merge")

    Invariants of `run`:

    1. An item is waiting, running, done, or given up on; never two of these. It runs on one
       worker, or on two if it takes far longer than other items (8).
    2. Items are given to ready workers, up to `tasks_per_worker` at a time, in separate threads:
       with two, a worker can read and write one item while it computes the other one. The pool
       never waits for pending workers; see `WorkerSet`.
    3. The loss of a worker returns its items to the waiting ones, and is never counted against
       them. But the pool gives up on an item whose worker's process has ended five times, on nodes
       that stayed alive: the item ends them, by the memory that it takes, for example. From the
       first time on, such an item runs alone.
    4. An item that raises is tried three times; then the pool gives up on it and goes on.
    5. An error that the user must correct (`G2isError`) ends the run at once: every other
       item would end the same way. Requirements that the cluster can never meet end the run too,
       and so does a worker on a node with other code than the driver's, or with a GPU that torch
       cannot use: such a worker would write other numbers.
    6. An actor is given items of the kind of its last item, for as long as some wait, and then
       of a kind that no other actor has; `affinity` maps an item to its kind.
    7. When the pool's block ends, the actors are gone, so that their nodes can be removed. After
       `run` returns or raises, no actor is busy.
    8. An item that takes three times as long as others is started a second time on an idle
       worker. The first receipt wins and the other worker is replaced, so that it neither
       blocks nor overwrites; the files are then checked. A worker that takes ten times as
       long hangs and is replaced; with each replacement, the item may take twice as long.

    `process` must be idempotent: after a loss an item may already have been written.
    """

    def __init__(
        self,
        actor_class: type,
        order: Any,
        share: Share,
        *,
        tasks_per_worker: int = 1,
        affinity: Callable[[Any], Any] | None = None,
        workspace: SharedWorkspace | None = None,
        on_event: OnEvent | None = None,
        limits: PoolLimits = PoolLimits(),  # noqa: B008  frozen
    ) -> None:
        """Describe a pool; the first `run` starts workers.

        Args:
            order: what the actors are built with, as their only argument.
            workspace: what every worker must see before it is given items.
            on_event: called by the loop with each event, after the event is logged; must be quick.
        """
        environment = {} if share.num_gpus else {"CUDA_VISIBLE_DEVICES": ""}
        options: dict[str, Any] = {
            "max_concurrency": tasks_per_worker,
            "runtime_env": {"env_vars": environment},
        }
        self._actor_class: Any = ray.remote(**options)(actor_class)
        self._order, self._share, self._workspace = order, share, workspace
        self._tasks_per_worker = tasks_per_worker
        self._kind = affinity or (lambda item: None)
        self._on_event, self._limits = on_event, limits
        self._workers: WorkerSet | None = None
        self._progress: Progress | None = None  # of the work list that is running

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._workers:
            self._workers.dismiss_all()
        self._workers = None

    def run(
        self,
        items: Sequence[Any],
        label: str,
        written: Callable[[Any], Receipt | None] | None = None,
    ) -> dict[Any, Receipt]:
        """Process every item; returns the receipts by item.

        Args:
            items: hashable and small; the arguments of `process`.
            label: name of the work, in log lines and errors.
            written: returns the receipt of an item if its files are whole; called where two
                workers may have written an item at once. Left out, the returned receipt counts.

        Raises:
            G2isError: raised by `process`, see 5.
            WorkError: the pool gave up on items, or no worker can start or run.
        """
        if not items:
            return {}
        if self._workers is None:
            self._workers = WorkerSet(
                self._actor_class,
                self._order,
                self._share,
                self._workspace,
                self._limits,
                self._tell,
            )
        workers = self._workers
        work = WorkList(items, self._kind, self._limits)
        with Progress(label, len(items)) as self._progress:
            run = _Run(
                workers,
                work,
                self._share.workers,
                self._tasks_per_worker,
                written,
                self._limits,
                self._tell,
            )
            try:
                run.go()
            except WorkError as error:
                raise WorkError(f"{label}: {error}") from error.__cause__
            finally:
                workers.dismiss_busy()
        if work.given_up:
            named = "; ".join(f"{item} {why}" for item, why in list(work.given_up.items())[:5])
            raise WorkError(
                f"{label}: gave up on {len(work.given_up)} of {len(items)} ({named}); the others "
                "are done, and the same command retries only these"
            )
        return work.receipts

    def _tell(self, event: str, **facts: Any) -> None:
        assert self._progress is not None
        facts["label"] = self._progress.label
        self._progress.on_event(event, facts)
        if self._on_event:
            self._on_event(event, facts)


class _Run:
    """The loop of one `WorkerPool.run`.

    Args:
        count: workers to have, as long as there are items for them.
    """

    def __init__(
        self,
        workers: WorkerSet,
        work: WorkList,
        count: int,
        tasks_per_worker: int,
        written: Callable[[Any], Receipt | None] | None,
        limits: PoolLimits,
        tell: Tell,
    ) -> None:
        self._workers, self._work, self._tell = workers, work, tell
        self._count, self._tasks_per_worker = count, tasks_per_worker
        self._written, self._limits = written, limits
        self._began = self._said = time.monotonic()
        self._lost = 0

    def go(self) -> None:
        workers, work = self._workers, self._work
        while work.left:
            self._assign()
            workers.ask(min(self._count - len(workers.ready), work.waiting))
            self._settle_next()
            self._look_after_stragglers()
            workers.look_after_pending()
            self._say_progress()

    # ---- giving items ------------------------------------------------------------

    def _assign(self) -> None:
        """Give waiting items to ready workers."""
        while self._work.waiting:
            free = [worker for worker in self._workers.ready if self._has_room(worker)]
            worker = min(free, key=lambda one: len(one.tasks), default=None)
            if worker is None:
                return
            if worker.tasks and self._work.waiting <= len(self._workers.pending):
                return  # the item is left for a pending worker, which would have no other
            taken = {other.kind for other in self._workers.ready}
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

    # ---- how items end ---------------------------------------------------------

    def _settle_next(self) -> None:
        """Wait a moment for a worker to become ready or an item to end, and settle it."""
        coming = {worker.handshake: worker for worker in self._workers.pending}
        running = {task: worker for worker in self._workers.ready for task in worker.tasks}
        if not coming and not running:  # a pause after failed starts
            time.sleep(_TICK_SECONDS)
            return
        for task in ray.wait([*running, *coming], num_returns=1, timeout=_TICK_SECONDS)[0]:
            if task in coming:
                self._workers.arrive(coming[task])
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
            return  # another worker may still finish the item
        self._work.failed(item, why)
        tries = self._work.failures[item]
        self._tell("part_failed", item=item, worker=worker.number, tries=tries, reason=why)
        self._say_if_given_up(item)

    def _lose(self, worker: Worker, why: str, *, died: bool = False) -> None:  # 3
        """Forget a worker; `died` means that its process ended by itself."""
        items = worker.items()
        self._workers.dismiss(worker)
        self._lost += 1
        named = [str(item) for item in items]
        self._tell("worker_lost", worker=worker.number, host=worker.host, items=named, reason=why)
        for item in items:
            if self._workers_of(item) or item in self._work.receipts:
                continue
            if died:
                self._work.died(item, why)
                self._say_if_given_up(item)
            else:
                self._work.give_back(item)

    def _say_if_given_up(self, item: Any) -> None:
        if item in self._work.given_up:
            self._tell("part_set_aside", item=item, reason=self._work.given_up[item])

    def _workers_of(self, item: Any) -> list[Worker]:
        return [worker for worker in self._workers.ready if item in worker.items()]

    # ---- stragglers --------------------------------------------------------------

    def _look_after_stragglers(self) -> None:  # 8
        now = time.monotonic()
        for worker in list(self._workers.ready):
            for item, began in list(worker.tasks.values()):
                seconds = now - began
                if self._work.is_hung(item, seconds):
                    self._work.hung(item)
                    self._lose(worker, f"{item} did not finish in {seconds:.0f} s")
                    break
                idle = [other for other in self._workers.ready if not other.tasks]
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
        """End other workers of a finished item; returns whether the item's files are whole."""
        others = self._workers_of(item)
        for other in others:
            tasks = [task for task, (its, _) in other.tasks.items() if its == item]
            self._lose(other, f"another worker finished {item}")
            ray.wait(tasks, timeout=self._limits.death_seconds)
        if others and self._written and self._written(item) is None:
            self._tell("part_damaged", item=item)
            self._work.undo(item)
            return False
        return True

    # ---- progress ----------------------------------------------------------------

    def _say_progress(self) -> None:
        now = time.monotonic()
        if self._work.left and now - self._said < self._limits.progress_seconds:
            return
        self._said = now
        self._tell(
            "progress",
            done=len(self._work.receipts),
            total=self._work.total,
            seconds=now - self._began,
            ready=len(self._workers.ready),
            pending=len(self._workers.pending),
            lost=self._lost,
            retries=self._work.failures.total(),
        )
