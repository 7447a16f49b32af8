"""The workers of a pool: asked for, ready, lost, and replaced."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, RpcError, RuntimeEnvSetupError

from actors import ray_internals
from actors.connection.cluster import Share
from actors.pool import placement, version_check
from actors.pool.limits import PoolLimits
from actors.pool.placement import ON_DEMAND, SPOT
from actors.pool.shared import SharedWorkspace
from g2is_ray.errors import G2isError, WorkError

_LITTLE = 0.001  # of a custom resource: any number of workers may share a node's 1

Tell = Callable[..., None]
"""Called with an event's name and its facts."""


@dataclass(eq=False, kw_only=True)
class Worker:
    """An actor and its running items."""

    number: int
    actor: Any
    capacity: str  # custom resource that the actor requires: spot, on_demand or none
    handshake: Any  # task that ends when the actor is ready
    asked: float = field(default_factory=time.monotonic)
    node_id: str = ""
    host: str = ""
    kind: Any = None  # kind of the last item
    tasks: dict[Any, tuple[Any, float]] = field(default_factory=dict)  # task -> item, start

    def items(self) -> list[Any]:
        return [item for item, _ in self.tasks.values()]


class WorkerSet:
    """Workers of one class: `pending` ones, which are asked for, and `ready` ones.

    A worker is ready after its handshake, from a node that shares the workspace and runs the
    driver's code. A pending worker is the demand for which an autoscaler adds a node. Ray does not
    restart a lost worker: the set forgets the worker and asks for another one. So a worker is lost
    at most once, and an on-demand machine may replace a spot machine.
    """

    def __init__(
        self,
        actor_class: Any,
        order: Any,
        share: Share,
        workspace: SharedWorkspace | None,
        limits: PoolLimits,
        tell: Tell,
    ) -> None:
        self.ready: list[Worker] = []
        self.pending: list[Worker] = []
        self.started = 0  # workers that were asked for
        self._class, self._order = actor_class, order
        self._share, self._workspace = share, workspace
        self._limits, self._tell = limits, tell
        self._failed_starts = 0  # in a row
        self._paused_until = 0.0
        self._looked = self._said = time.monotonic()
        self._refused: dict[str, float] = {}  # capacity type -> when the cluster first refused it
        self._missing = placement.missing_capacity()

    # ---- asking for workers ------------------------------------------------------

    def ask(self, count: int) -> None:
        """Have `count` workers pending, and dismiss those beyond."""
        while len(self.pending) > count:
            self.dismiss(self.pending[-1])
        while len(self.pending) < count and time.monotonic() >= self._paused_until:
            self._ask(SPOT if self._share.num_gpus and SPOT not in self._missing else "")

    def _ask(self, capacity: str) -> None:
        actor = self._class.options(
            num_cpus=self._share.num_cpus,
            num_gpus=self._share.num_gpus,
            resources={capacity: _LITTLE} if capacity else {},
        ).remote(self._order)
        self.started += 1
        uses_gpu = self._share.num_gpus > 0
        handshake = ray_internals.call_in_actor(
            actor, version_check.handshake, self._workspace, uses_gpu
        )
        self.pending.append(
            Worker(number=self.started, actor=actor, capacity=capacity, handshake=handshake)
        )

    def _request(self, capacity: str) -> dict[str, float]:
        request = {"CPU": self._share.num_cpus, "GPU": self._share.num_gpus}
        return request | ({capacity: _LITTLE} if capacity else {})

    # ---- coming and going --------------------------------------------------------

    def arrive(self, worker: Worker) -> None:
        """Make a pending worker ready after its handshake, or forget it if it is lost.

        Raises:
            G2isError: the worker's node does not share the workspace.
            WorkError: workers cannot start, have other code, or a GPU that torch cannot use.
        """
        try:
            answer = ray.get(worker.handshake)
        except RayTaskError as error:
            if isinstance(error.cause, G2isError):
                raise error.cause from None
            why = version_check.missing_code(error) or f"workers cannot start: {reason(error)}"
            raise WorkError(why) from error
        except RayError as error:
            if why := version_check.missing_code(error):
                raise WorkError(why) from error
            hopeless = isinstance(error, RuntimeEnvSetupError)
            if hopeless or ray_internals.failed_in_constructor(error):  # as it would every time
                raise WorkError(f"workers cannot start: {reason(error)}") from error
            self._lost_before_ready(worker, error)
            return
        if isinstance(answer, dict) and self._workspace:
            self._workspace.find(answer["mark"], answer["host"])
        if why := version_check.problem(answer):
            raise WorkError(why)
        worker.node_id, worker.host = answer["node_id"], answer["host"]
        self._failed_starts = 0
        self.pending.remove(worker)
        self.ready.append(worker)
        self._tell("worker_ready", worker=worker.number, host=worker.host, capacity=worker.capacity)

    def _lost_before_ready(self, worker: Worker, error: RayError) -> None:
        self.dismiss(worker)
        self._failed_starts += 1
        self._tell("worker_never_ready", worker=worker.number, reason=reason(error))
        if self._failed_starts > self._limits.failed_starts * self._share.workers:
            raise WorkError(
                f"{self._failed_starts} workers in a row died before they were ready, the last "
                f"with: {reason(error)}; finished parts are kept"
            ) from error
        pause = min(self._limits.longest_pause_seconds, 0.5 * 2**self._failed_starts)
        self._paused_until = time.monotonic() + pause

    def dismiss(self, worker: Worker) -> None:
        """End a worker, even a busy one."""
        ray.kill(worker.actor, no_restart=True)
        (self.ready if worker in self.ready else self.pending).remove(worker)

    def dismiss_busy(self) -> None:
        """End the workers that have items."""
        for worker in [one for one in self.ready if one.tasks]:
            self.dismiss(worker)

    def dismiss_all(self) -> None:
        for worker in self.ready + self.pending:
            self.dismiss(worker)

    # ---- waiting for workers -----------------------------------------------------

    def look_after_pending(self) -> None:
        """Ask for on-demand machines if spot ones do not come, and notice what cannot come.

        Raises:
            WorkError: no worker is ready, and no node has or will have what a worker requires.
        """
        now = time.monotonic()
        if not self.pending or now - self._looked < self._limits.look_seconds:
            return
        self._looked = now
        with contextlib.suppress(RpcError):  # Ray's head is busy; the next look is soon enough
            self._look(now)

    def _look(self, now: float) -> None:
        self._lose_patience(now)
        for capacity in {worker.capacity for worker in self.pending}:
            request = self._request(capacity)
            if placement.fits(request) or placement.may_come(request):
                self._refused.pop(capacity, None)
            elif now - self._refused.setdefault(capacity, now) >= self._limits.certain_seconds:
                self._give_up(capacity)
        if now - self._said >= self._limits.waiting_seconds:
            self._said = now
            why = "; ".join(placement.failed_launches()) or "the cluster has none free"
            self._tell("waiting", workers=len(self.pending), request=self._in_words(), reason=why)

    def _lose_patience(self, now: float) -> None:
        patience = self._share.spot_patience_seconds
        if not patience or ON_DEMAND in self._missing:
            return
        late = [w for w in self.pending if w.capacity == SPOT and now - w.asked >= patience]
        if not late or placement.machines_on_their_way():  # setting up a machine may take long
            return
        self._tell("on_demand", workers=len(late), seconds=patience)
        for worker in late:
            self.dismiss(worker)
            self._ask(ON_DEMAND)

    def _give_up(self, capacity: str) -> None:
        if capacity:  # asked for no more
            self._missing.add(capacity)
            for worker in [one for one in self.pending if one.capacity == capacity]:
                self.dismiss(worker)
        elif not self.ready:
            raise WorkError(
                f"no node of the cluster has {self._in_words()} for a worker, and no autoscaler "
                "will add one: add such a node or node type, or set accelerator or workers to "
                "what the cluster has"
            )

    def _in_words(self) -> str:
        request = self._request("")
        return " and ".join(f"{amount:g} {name}" for name, amount in request.items() if amount)


def reason(error: BaseException) -> str:
    """The line of an error that says most, of Ray's many."""
    if isinstance(error, RayTaskError) and error.cause is not None:
        return next(iter(str(error.cause).strip().splitlines()), type(error.cause).__name__)
    lines = [line for line in str(error).splitlines() if line and not line.startswith("\t")]
    return lines[-1].strip() if lines else type(error).__name__
