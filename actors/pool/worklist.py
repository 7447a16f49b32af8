"""The items of a pool: waiting, running, done or given up on."""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from actors.pool.limits import PoolLimits

_FIRST = 3  # finished items before the usual time of an item is known
_RECENT = 100  # latest finished items that the usual time of an item is the median of

Receipt = dict[str, Any]


class WorkList:
    """What is left to do, and what became of the rest.

    An item that is neither waiting, done nor given up on is running; the pool knows on which
    worker.
    """

    def __init__(
        self,
        items: Sequence[Any],
        kind: Callable[[Any], Any],
        limits: PoolLimits = PoolLimits(),  # noqa: B008  frozen
    ) -> None:
        self.receipts: dict[Any, Receipt] = {}
        self.given_up: dict[Any, str] = {}  # item -> why the pool gave up on it
        self.total = len(items)
        self.failures: Counter[Any] = Counter()
        self._kind, self._limits = kind, limits
        self._waiting: dict[Any, deque[Any]] = {}  # by kind; no queue is empty
        self._suspects: deque[Any] = deque()
        self._deaths: Counter[Any] = Counter()
        self._hung: Counter[Any] = Counter()
        self._seconds: deque[float] = deque(maxlen=_RECENT)  # duration of each finished item
        for item in items:
            self.give_back(item)

    @property
    def waiting(self) -> int:
        return len(self._suspects) + sum(map(len, self._waiting.values()))

    @property
    def left(self) -> int:
        """Number of items that are neither done nor given up on."""
        return self.total - len(self.receipts) - len(self.given_up)

    def is_suspect(self, item: Any) -> bool:
        """Whether a worker died over the item, so that the item must run alone."""
        return self._deaths[item] > 0

    # ---- taking and giving back --------------------------------------------------

    def take(self, mine: Any, taken: set[Any], *, alone: bool) -> tuple[Any, Any] | None:
        """Return the next item and its kind, or None if no item fits.

        Args:
            mine: the kind of the worker's last item; items of this kind come first.
            taken: kinds of the other workers; items of these kinds come last.
            alone: whether the worker is idle.
        """
        if not self._waiting:
            if not (alone and self._suspects):
                return None
            item = self._suspects.popleft()
            return item, self._kind(item)
        free = (kind for kind in self._waiting if kind not in taken)
        kind = mine if mine in self._waiting else next(free, next(iter(self._waiting)))
        item = self._waiting[kind].popleft()
        if not self._waiting[kind]:
            del self._waiting[kind]
        return item, kind

    def give_back(self, item: Any) -> None:
        """Let an item wait, for the first time or again."""
        if self.is_suspect(item):
            self._suspects.append(item)
        else:
            self._waiting.setdefault(self._kind(item), deque()).append(item)

    # ---- what became of an item --------------------------------------------------

    def done(self, item: Any, receipt: Receipt, seconds: float) -> None:
        self.receipts[item] = receipt
        self._seconds.append(seconds)

    def undo(self, item: Any) -> None:
        """Let a finished item wait again, because its files turned out to be damaged."""
        del self.receipts[item]
        self.give_back(item)

    def failed(self, item: Any, why: str) -> None:
        """Record that an item raised: it waits again, or the pool gives up on it."""
        self.failures[item] += 1
        if self.failures[item] < self._limits.tries:
            self.give_back(item)
        else:
            self.given_up[item] = f"failed {self._limits.tries} times: {why}"

    def died(self, item: Any, why: str) -> None:
        """Record that an item's worker died: the item waits, or the pool gives up on it."""
        self._deaths[item] += 1
        if self._deaths[item] < self._limits.deaths:
            self.give_back(item)
        else:
            self.given_up[item] = f"ended its worker {self._limits.deaths} times: {why}"

    def hung(self, item: Any) -> None:
        """Record that an item's worker hung; from now on the item may take twice as long."""
        self._hung[item] += 1

    # ---- how long an item may take -----------------------------------------------

    @property
    def usual_seconds(self) -> float:
        """Median duration of an item, or infinity until three items are done."""
        return statistics.median(self._seconds) if len(self._seconds) >= _FIRST else float("inf")

    def is_slow(self, seconds: float) -> bool:
        limits = self._limits
        return seconds > max(limits.slow_seconds, limits.slow_times * self.usual_seconds)

    def is_hung(self, item: Any, seconds: float) -> bool:
        limits = self._limits
        usual = max(limits.hung_seconds, limits.hung_times * self.usual_seconds)
        return seconds > usual * 2 ** self._hung[item]
