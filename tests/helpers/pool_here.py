"""A pool of one worker in this process, in place of `WorkerPool`, for tests without Ray."""

import jobs.parts
from jobs.session import Session


class PoolHere:
    """Processes items one after another; lists what every pool has processed."""

    pools: list["PoolHere"] = []  # noqa: RUF012  of the test

    def __init__(self, actor_class, order, share, **options):
        self._worker = actor_class(order)
        self.done = []
        PoolHere.pools.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.ended = True

    def run(self, items, label, written=None):
        self.done += map(str, items)
        return {item: self._worker.process(item) for item in items}


def all_done():
    """Items that all pools have processed, in order."""
    return [item for pool in PoolHere.pools for item in pool.done]


def work_here(monkeypatch):
    """Have the stages of a command processed in this process, without Ray."""
    monkeypatch.setattr(jobs.parts, "WorkerPool", PoolHere)
    monkeypatch.setattr(jobs.parts, "share_of_cluster", lambda *given, **more: None)
    monkeypatch.setattr(Session, "ray", lambda self: None)
    monkeypatch.setattr(PoolHere, "pools", [])
