"""Metrics of a pool by stage, which Ray exports for Prometheus."""

from __future__ import annotations

import functools
from typing import Any

from ray.util.metrics import Counter, Gauge


class PoolMetrics:
    """Counts a pool's events; Prometheus finds the counts under `ray_g2is_…` on the driver's node.

    The counts only grow; a speed is their rate, such as `rate(ray_g2is_tokens_done_total[5m])`.
    """

    def __init__(self) -> None:
        self._parts = _counter("g2is_parts_done", "Parts that are done.")
        self._examples = _counter("g2is_examples_done", "Examples of parts that are done.")
        self._tokens = _counter("g2is_tokens_done", "Tokens of parts that are done.")
        self._retries = _counter("g2is_retries", "Tries of parts that failed.")
        self._losses = _counter("g2is_workers_lost", "Workers that were lost.")
        self._workers = Gauge(
            "g2is_workers", "Workers by state, ready or pending.", tag_keys=("stage", "state")
        )

    def on_event(self, name: str, facts: dict[str, Any]) -> None:
        """Count an event of `WorkerPool`."""
        stage = {"stage": facts["label"]}
        if name == "part_done":
            self._parts.inc(tags=stage)
            for counter, kind in ((self._examples, "rows"), (self._tokens, "tokens")):
                if count := facts["receipt"].get(kind):
                    counter.inc(count, tags=stage)
        elif name == "part_failed":
            self._retries.inc(tags=stage)
        elif name == "worker_lost":
            self._losses.inc(tags=stage)
        elif name == "progress":
            at_work = facts["done"] < facts["total"]  # idle workers do not count for the stage
            for state in ("ready", "pending"):
                self._workers.set(facts[state] * at_work, tags=stage | {"state": state})


@functools.cache
def pool_metrics() -> PoolMetrics:
    """Return the process's metrics: Ray takes each name once."""
    return PoolMetrics()


def _counter(name: str, description: str) -> Counter:
    return Counter(name, description, tag_keys=("stage",))
