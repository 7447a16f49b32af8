"""What a pool of workers tolerates: how often, how many, and for how many seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """Limits of a `WorkerPool`; the defaults suit parts that take seconds to minutes."""

    tries: int = 3
    """Times that an item may raise before the pool gives up on it."""

    deaths: int = 5
    """Workers that may end over an item, on nodes that stay alive, before the pool gives up on
    the item."""

    slow_times: float = 3.0
    """Multiple of the usual time of an item, after which a second worker starts the item too."""

    slow_seconds: float = 60.0
    """Seconds that an item takes at least before a second worker starts it too."""

    hung_times: float = 10.0
    """Multiple of the usual time of an item, after which its worker is replaced."""

    hung_seconds: float = 600.0
    """Seconds that an item takes at least before its worker is replaced."""

    failed_starts: int = 10
    """Workers in a row, per worker of the pool, that may die before they are ready."""

    longest_pause_seconds: float = 30.0
    """Longest pause between failed starts; the first pause is one second, and each one doubles."""

    look_seconds: float = 3.0
    """Seconds between requests for the state of the cluster and its autoscaler."""

    certain_seconds: float = 15.0
    """Seconds for which the cluster must refuse a worker; an autoscaler decides every five."""

    waiting_seconds: float = 60.0
    """Seconds between log lines about pending workers."""

    progress_seconds: float = 15.0
    """Seconds between progress events."""

    death_seconds: float = 30.0
    """Seconds that a worker may take to end."""
