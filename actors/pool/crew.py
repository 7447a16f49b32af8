"""The actors of a pool: asked for, there, lost, and asked for again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, RpcError, RuntimeEnvSetupError

from actors.connection.cluster import Share
from actors.pool import placement
from actors.pool import version_check as hellos
from actors.pool.placement import ON_DEMAND, SPOT
from actors.pool.shared import SharedWorkspace
from g2is_ray.errors import G2isError, WorkError

_LITTLE = 0.001  # of a custom resource: any number of workers may share a node's 1
_STARTS = 10  # per worker, that may fail before any worker is there
_LONGEST_PAUSE_SECONDS = 30.0
_LOOK_SECONDS = 3.0  # between looks at what the cluster and its autoscaler say
_CERTAIN_SECONDS = 15.0  # that it must have said no for: it decides every 5 seconds
_WAITING_SECONDS = 60.0  # between log lines about workers that are waited for

Tell = Callable[..., None]
"""Called with an event's name and its facts."""


@dataclass(eq=False, kw_only=True)
class Worker:
    """An actor, and what it has to do."""

    number: int
    actor: Any
    market: str  # custom resource that it asks for: spot, on_demand or neither
    hello: Any  # the task that ends when it is there
    asked: float = field(default_factory=time.monotonic)
    node_id: str = ""
    host: str = ""
    kind: Any = None  # of the item that it had last
    tasks: dict[Any, tuple[Any, float]] = field(default_factory=dict)  # task -> item, begin

    def items(self) -> list[Any]:
        return [item for item, _ in self.tasks.values()]


class Crew:
    """Workers of one class: `pending` ones that are asked for, and `ready` ones that are there.

    A worker is there once it has said hello from a node that shares the workspace and runs the
    driver's code. A pending one is the demand that makes an autoscaler bring a node. A lost
    worker is not restarted by Ray: it is forgotten and another is asked for, so that a worker is
    lost at most once, and that a spot machine that was taken may be replaced by an on-demand one.
    """

    def __init__(
        self,
        actor_class: Any,
        arguments: dict[str, Any],
        share: Share,
        workspace: SharedWorkspace | None,
        tell: Tell,
    ) -> None:
        self.ready: list[Worker] = []
        self.pending: list[Worker] = []
        self._class, self._arguments = actor_class, arguments
        self._share, self._workspace, self._tell = share, workspace, tell
        self._count = 0
        self._failed_starts = 0  # in a row
        self._paused_until = 0.0
        self._looked = self._said = time.monotonic()
        self._refused: dict[str, float] = {}  # market -> since when it has been refused
        self._missing = placement.missing_markets()

    # ---- asking for workers ------------------------------------------------------

    def ask(self, count: int) -> None:
        """Have `count` workers pending; those that nobody needs any more are given up."""
        while len(self.pending) > count:
            self.dismiss(self.pending[-1])
        while len(self.pending) < count and time.monotonic() >= self._paused_until:
            self._ask(SPOT if self._share.num_gpus and SPOT not in self._missing else "")

    def _ask(self, market: str) -> None:
        actor = self._class.options(
            num_cpus=self._share.num_cpus,
            num_gpus=self._share.num_gpus,
            resources={market: _LITTLE} if market else {},
        ).remote(**self._arguments)
        self._count += 1
        hello = actor.__ray_call__.remote(hellos.hello, self._workspace, self._share.num_gpus > 0)
        self.pending.append(Worker(number=self._count, actor=actor, market=market, hello=hello))

    def _request(self, market: str) -> dict[str, float]:
        request = {"CPU": self._share.num_cpus, "GPU": self._share.num_gpus}
        return request | ({market: _LITTLE} if market else {})

    # ---- coming and going --------------------------------------------------------

    def arrive(self, worker: Worker) -> None:
        """Take in a pending worker that has said hello, or forget one that was lost before.

        Raises:
            G2isError: its node does not share the workspace.
            WorkError: workers cannot start, have other code, or a GPU that torch cannot use.
        """
        try:
            said = ray.get(worker.hello)
        except RayTaskError as error:
            if isinstance(error.cause, G2isError):
                raise error.cause from None
            why = hellos.missing_code(error) or f"workers cannot start: {reason(error)}"
            raise WorkError(why) from error
        except RayError as error:
            if why := hellos.missing_code(error):
                raise WorkError(why) from error
            hopeless = isinstance(error, RuntimeEnvSetupError)
            if hopeless or getattr(error, "actor_init_failed", False):  # as it would be every time
                raise WorkError(f"workers cannot start: {reason(error)}") from error
            self._lost_before_it_was_there(worker, error)
            return
        if isinstance(said, dict) and self._workspace:
            self._workspace.find(said["mark"], said["host"])
        if why := hellos.problem(said):
            raise WorkError(why)
        worker.node_id, worker.host = said["node_id"], said["host"]
        self._failed_starts = 0
        self.pending.remove(worker)
        self.ready.append(worker)
        self._tell("worker_ready", worker=worker.number, host=worker.host, market=worker.market)

    def _lost_before_it_was_there(self, worker: Worker, error: RayError) -> None:
        self.dismiss(worker)
        self._failed_starts += 1
        self._tell("worker_never_ready", worker=worker.number, reason=reason(error))
        if self._failed_starts > _STARTS * self._share.workers:
            raise WorkError(
                f"{self._failed_starts} workers in a row died before they were ready, the last "
                f"with: {reason(error)}; finished parts are kept"
            ) from error
        pause = min(_LONGEST_PAUSE_SECONDS, 0.5 * 2**self._failed_starts)
        self._paused_until = time.monotonic() + pause

    def dismiss(self, worker: Worker) -> None:
        """End a worker, whatever it is doing."""
        ray.kill(worker.actor, no_restart=True)
        (self.ready if worker in self.ready else self.pending).remove(worker)

    def dismiss_all(self) -> None:
        for worker in self.ready + self.pending:
            self.dismiss(worker)

    # ---- waiting for workers -----------------------------------------------------

    def look_after_pending(self) -> None:
        """Turn to on-demand machines when spot ones do not come; notice what can never come.

        Raises:
            WorkError: no worker is there, and no node has what one asks for or will have it.
        """
        now = time.monotonic()
        if not self.pending or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        with contextlib.suppress(RpcError):  # Ray's head is busy: another look will do
            self._look(now)

    def _look(self, now: float) -> None:
        self._lose_patience(now)
        for market in {worker.market for worker in self.pending}:
            request = self._request(market)
            if placement.fits(request) or placement.may_come(request):
                self._refused.pop(market, None)
            elif now - self._refused.setdefault(market, now) >= _CERTAIN_SECONDS:
                self._give_up(market)
        if now - self._said >= _WAITING_SECONDS:
            self._said = now
            why = "; ".join(placement.failed_launches()) or "the cluster has none free"
            self._tell("waiting", workers=len(self.pending), request=self._in_words(), reason=why)

    def _lose_patience(self, now: float) -> None:
        patience = self._share.spot_patience_seconds
        if not patience or ON_DEMAND in self._missing:
            return
        late = [w for w in self.pending if w.market == SPOT and now - w.asked >= patience]
        if not late or placement.machines_on_their_way():  # it may take long to set one up
            return
        self._tell("on_demand", workers=len(late), seconds=patience)
        for worker in late:
            self.dismiss(worker)
            self._ask(ON_DEMAND)

    def _give_up(self, market: str) -> None:
        if market:  # it is asked for no more
            self._missing.add(market)
            for worker in [one for one in self.pending if one.market == market]:
                self.dismiss(worker)
        elif not self.ready:
            raise WorkError(
                f"no node of the cluster has {self._in_words()} for a worker, and no autoscaler "
                "will bring one: add such a node or node type, or set accelerator or workers to "
                "what there is"
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
