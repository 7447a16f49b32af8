"""How far a selection favors the sources of its target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def own_share(
    selected_groups: Mapping[str, int],
    pool_groups: Mapping[str, int],
    target_groups: Iterable[str],
) -> float | None:
    """Lift of the target's own sources: their share of the selection over that of the pool.

    1 is what random picks give on average. None when the target's sources do not occur in
    the pool, or when nothing is selected.

    >>> own_share({"math": 3, "chat": 1}, {"math": 10, "chat": 90}, ["math"])
    7.5
    """
    own = set(target_groups)
    pool, selected = share_of(pool_groups, own), share_of(selected_groups, own)
    return selected / pool if pool and selected is not None else None


def share_of(groups: Mapping[str, int], own: Iterable[str]) -> float | None:
    """Share of the rows that come from some of the groups; None where there are no rows."""
    total = sum(groups.values())
    return sum(groups.get(name, 0) for name in set(own)) / total if total else None
