"""From gradients, graph and target to a selection and its summary."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from g2is_ray.config import WalkSettings
from g2is_ray.errors import InputError, SettingError
from g2is_ray.knowledge import CoreKnowledge, core_knowledge, split_budget
from g2is_ray.rows import Rows
from g2is_ray.walk import Neighbors, Pick, Walk, align

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The picks of a walk, and what led to them."""

    picks: list[Pick]
    knowledge: CoreKnowledge
    budgets: list[int]

    @property
    def rows(self) -> list[int]:
        return [pick.row for pick in self.picks]

    def lines(self, ids: Sequence[str] | None = None) -> bytes:
        """The picks as JSON lines, in order; with the rows' ids if given, one per pick."""
        return pick_lines(self.picks, ids)

    def summary(self) -> dict[str, Any]:
        """Budget, picks and components, in numbers."""
        steps = Counter((pick.component, pick.step) for pick in self.picks)
        return {
            "budget": sum(self.budgets),
            "selected": len(self.picks),
            "components": len(self.budgets),
            "per_component": [
                ({"target": self.knowledge.targets[c]} if self.knowledge.targets else {})
                | {
                    "component": c,
                    "explained_variance_ratio": float(self.knowledge.explained_variance_ratio[c]),
                    "weight": float(self.knowledge.weights[c]),
                    "budget": self.budgets[c],
                    "selected": sum(steps[c, step] for step in ("anchor", "neighbor", "fallback")),
                    "anchors": steps[c, "anchor"],
                    "neighbors": steps[c, "neighbor"],
                    "fallbacks": steps[c, "fallback"],
                }
                for c in range(len(self.budgets))
            ],
        }


def pick_lines(picks: Sequence[Pick], ids: Sequence[str] | None = None) -> bytes:
    """JSON lines of picks, with the rows' ids if given."""
    records = [asdict(pick) for pick in picks]
    for record, own in zip(records, ids or [], strict=False):
        record["id"] = own
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def budget_of(rows: int, fraction: float) -> int:
    """Rows to select, int(rows x fraction).

    Raises:
        SettingError: that is less than one row.
    """
    budget = int(rows * fraction)
    if budget < 1:
        raise SettingError(
            f"fraction {fraction:g} of {rows} rows is less than one row; raise fraction"
        )
    return budget


def knowledge_of(
    target: NDArray[np.floating], rows: int, dimensions: int, settings: WalkSettings
) -> CoreKnowledge:
    """Components of a target for a pool of so many rows and dimensions.

    Args:
        target: target gradients [m, d]; rows of zeros are left out.

    Raises:
        InputError: dimensions differ, or the target has no components.
        SettingError: the budget is less than one row.
    """
    check_shapes(rows, dimensions, target, settings)
    return core_knowledge(
        target[np.any(target != 0, axis=1)],
        explained_variance=settings.explained_variance,
        pca=settings.pca,
        orient=settings.orient,
    )


def check_shapes(
    rows: int, dimensions: int, target: NDArray[np.floating], settings: WalkSettings
) -> None:
    """Refuse what `select` cannot work with, before a graph is built for it.

    Raises:
        InputError: dimensions differ.
        SettingError: the budget is less than one row.
    """
    if dimensions != target.shape[1]:
        raise InputError(
            f"pool gradients have {dimensions} dimensions, but target gradients {target.shape[1]}"
        )
    budget_of(rows, settings.fraction)


def select(
    x: Rows, neighbors: Neighbors, target: NDArray[np.floating], settings: WalkSettings
) -> Selection:
    """Select rows of the pool for a target; the arguments are as in `knowledge_of` and `Walk`."""
    knowledge = knowledge_of(target, len(x), x.dimensions, settings)
    [along], valid = align(x, [knowledge.components])
    return carry_out(knowledge, x, neighbors, along, valid, settings)


def carry_out(
    knowledge: CoreKnowledge,
    x: Rows,
    neighbors: Neighbors,
    along: NDArray[np.float32],
    valid: NDArray[np.bool_],
    settings: WalkSettings,
    *,
    label: str = "walk",
    earlier: Sequence[list[Pick]] = (),
    save: Callable[[int, list[Pick]], None] | None = None,
) -> Selection:
    """Split the budget over the components, and walk one after another.

    Args:
        along, valid: what `align` gives for the components.
        label: heads the log lines.
        earlier: picks of the first components, if an earlier walk finished those.
        save: is given each further component and its picks as soon as they are made.
    """
    budget = budget_of(len(x), settings.fraction)
    budgets = split_budget(budget, knowledge.weights)
    walk = Walk(
        x, neighbors, along, valid, delta=settings.delta, on_exhausted=settings.on_exhausted
    )
    picks = [pick for piece in earlier for pick in piece]
    walk.repeat(picks)
    progress = _Progress(label, budget, len(picks))
    for component in range(len(earlier), len(budgets)):
        own = []
        # Products of a few rows are too small to share: threads that wait for each other made
        # them 17 times slower on a busy machine (benchmarks/walk.py).
        with threadpool_limits(1, "blas"):
            for pick in walk.component(component, budgets[component]):
                own.append(pick)
                progress.step(len(picks) + len(own))
        picks += own
        if save:
            save(component, own)
    if len(picks) < budget:
        why = (
            "every usable row is picked"
            if settings.on_exhausted == "restart"
            else "nothing else qualified, and on_exhausted is stop"
        )
        log.warning("%s: %d of %d picked: %s", label, len(picks), budget, why)
    return Selection(picks=picks, knowledge=knowledge, budgets=budgets)


class _Progress:
    """A log line every so often: picks, their rate, and the time left at that rate."""

    def __init__(self, label: str, budget: int, earlier: int) -> None:
        self._label, self._budget, self._earlier = label, budget, earlier
        self._began = self._said = time.monotonic()
        if earlier:
            log.info("%s: %d of %d were picked before", label, earlier, budget)

    def step(self, picked: int) -> None:
        now = time.monotonic()
        if now - self._said < _PROGRESS_SECONDS:
            return
        self._said = now
        rate = (picked - self._earlier) / (now - self._began)
        log.info(
            "%s: %d of %d picked, %.1f a second, about %.0f s left",
            self._label,
            picked,
            self._budget,
            rate,
            (self._budget - picked) / rate,
        )
