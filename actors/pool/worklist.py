"""The items of a pool: waiting, running, done or set aside."""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

_TRIES = 3  # of an item that fails by itself
_DEATHS = 5  # of workers on nodes that lived on, before the item that they had is to blame
_FINISHED = 3  # items that must be done before it is said how long one takes
_RECENT = 100  # items that this is said by
_SLOW, _SLOW_SECONDS = 3.0, 60.0  # times the usual, and at least: a straggler
_HUNG, _HUNG_SECONDS = 10.0, 600.0  # the same, of an item that will not end

Receipt = dict[str, Any]


class WorkList:
    """What is left to do, and what became of the rest.

    An item is running while it is neither waiting, done nor set aside; who runs it is the
    pool's to know.
    """

    def __init__(self, items: Sequence[Any], kind: Callable[[Any], Any]) -> None:
        self.receipts: dict[Any, Receipt] = {}
        self.aside: dict[Any, str] = {}  # item -> what it did
        self.total = len(items)
        self.failures: Counter[Any] = Counter()
        self._kind = kind
        self._waiting: dict[Any, deque[Any]] = {}  # by kind; none is empty
        self._suspects: deque[Any] = deque()
        self._deaths: Counter[Any] = Counter()
        self._hung: Counter[Any] = Counter()
        self._seconds: deque[float] = deque(maxlen=_RECENT)  # that items took
        for item in items:
            self.give_back(item)

    @property
    def waiting(self) -> int:
        return len(self._suspects) + sum(map(len, self._waiting.values()))

    @property
    def left(self) -> int:
        """Items that are neither done nor set aside."""
        return self.total - len(self.receipts) - len(self.aside)

    def is_suspect(self, item: Any) -> bool:
        """Whether a worker has died over the item, so that it should run alone."""
        return self._deaths[item] > 0

    # ---- taking and giving back --------------------------------------------------

    def take(self, mine: Any, taken: set[Any], *, alone: bool) -> tuple[Any, Any] | None:
        """The next item and its kind, or None if none fits.

        Args:
            mine: kind that the worker had last, which comes first.
            taken: kinds that workers have, which come last.
            alone: whether the worker has nothing else to do.
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
        """Have an item wait, again or for the first time."""
        if self.is_suspect(item):
            self._suspects.append(item)
        else:
            self._waiting.setdefault(self._kind(item), deque()).append(item)

    # ---- what became of an item --------------------------------------------------

    def done(self, item: Any, receipt: Receipt, seconds: float) -> None:
        self.receipts[item] = receipt
        self._seconds.append(seconds)

    def undo(self, item: Any) -> None:
        """A finished item turned out not to be done."""
        del self.receipts[item]
        self.give_back(item)

    def failed(self, item: Any, why: str) -> None:
        """The item raised: it waits again, or is set aside."""
        self.failures[item] += 1
        if self.failures[item] < _TRIES:
            self.give_back(item)
        else:
            self.aside[item] = f"failed {_TRIES} times: {why}"

    def died(self, item: Any, why: str) -> None:
        """The item's worker ended by itself: the item waits again, or is set aside."""
        self._deaths[item] += 1
        if self._deaths[item] < _DEATHS:
            self.give_back(item)
        else:
            self.aside[item] = f"ended its worker {_DEATHS} times: {why}"

    def hung(self, item: Any) -> None:
        """The item's worker was replaced because it took too long; next time it may take twice."""
        self._hung[item] += 1

    # ---- how long an item may take -----------------------------------------------

    @property
    def usual_seconds(self) -> float:
        """What an item takes, or infinity while too few are done to say so."""
        return statistics.median(self._seconds) if len(self._seconds) >= _FINISHED else float("inf")

    def is_slow(self, seconds: float) -> bool:
        return seconds > max(_SLOW_SECONDS, _SLOW * self.usual_seconds)

    def is_hung(self, item: Any, seconds: float) -> bool:
        usual = max(_HUNG_SECONDS, _HUNG * self.usual_seconds)
        return seconds > usual * 2 ** self._hung[item]
