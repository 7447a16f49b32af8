"""From gradients, graph and target to a selection and its summary."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2is_ray.config import WalkSettings
from g2is_ray.errors import InputError, SettingError
from g2is_ray.knowledge import CoreKnowledge, core_knowledge, split_budget
from g2is_ray.walk import Pick, walk

log = logging.getLogger(__name__)

_PROGRESS_PICKS = 1000


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
        records = [asdict(pick) for pick in self.picks]
        for record, own in zip(records, ids or [], strict=False):
            record["id"] = own
        return "".join(json.dumps(record) + "\n" for record in records).encode()

    def summary(self) -> dict[str, Any]:
        """Budget, picks and components, in numbers."""
        steps = Counter((pick.component, pick.step) for pick in self.picks)
        return {
            "budget": sum(self.budgets),
            "selected": len(self.picks),
            "components": len(self.budgets),
            "per_component": [
                {
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


def check_shapes(
    x: NDArray[np.floating], target: NDArray[np.floating], settings: WalkSettings
) -> None:
    """Refuse what `select` cannot work with, before a graph is built for it.

    Raises:
        InputError: dimensions differ.
        SettingError: the budget is less than one row.
    """
    if x.shape[1] != target.shape[1]:
        raise InputError(
            f"pool gradients have {x.shape[1]} dimensions, but target gradients {target.shape[1]}"
        )
    budget_of(len(x), settings.fraction)


def select(
    x: NDArray[np.float32],
    neighbors: NDArray[np.integer],
    target: NDArray[np.floating],
    settings: WalkSettings,
) -> Selection:
    """Select rows of the pool for a target.

    Args:
        x: pool gradients [n, d], unit rows; rows of zeros are invalid.
        neighbors: [n, k] rows of `x` in descending similarity.
        target: target gradients [m, d]; rows of zeros are left out.

    Raises:
        InputError: dimensions differ, or the target has no components.
        SettingError: the budget is less than one row.
    """
    check_shapes(x, target, settings)
    budget = budget_of(len(x), settings.fraction)
    knowledge = core_knowledge(
        target[np.any(target != 0, axis=1)],
        explained_variance=settings.explained_variance,
        pca=settings.pca,
        orient=settings.orient,
    )
    budgets = split_budget(budget, knowledge.weights)
    picks = []
    for pick in walk(
        x,
        neighbors,
        knowledge.components,
        budgets,
        delta=settings.delta,
        on_exhausted=settings.on_exhausted,
    ):
        picks.append(pick)
        if len(picks) % _PROGRESS_PICKS == 0:
            log.info("walk: %d of %d picked", len(picks), budget)
    if len(picks) < budget:
        why = (
            "every usable row is picked"
            if settings.on_exhausted == "restart"
            else "nothing else qualified, and on_exhausted is stop"
        )
        log.warning("walk: %d of %d picked: %s", len(picks), budget, why)
    return Selection(picks=picks, knowledge=knowledge, budgets=budgets)
