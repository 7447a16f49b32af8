"""The gradient walk as a selector: components, their budgets, and a walk for each of them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from g2is_ray.config import WalkSettings
from g2is_ray.selector.budget import Budget, split_budget
from g2is_ray.selector.interface import Pool, Selector, Target
from g2is_ray.selector.knowledge import CoreKnowledge, core_knowledge, joint_knowledge
from g2is_ray.selector.picks import PassedOver, Pick, Pieces, Selection
from g2is_ray.selector.walk import Walk

log = logging.getLogger(__name__)


class GradientWalk(Selector):
    """Walks from each component's anchor through the kNN graph.

    The budget is split over the components of all targets together. A piece of the selection is a
    component. A walk may end before its budget is spent.

    Source: G2IS (arXiv 2502.11062), section 3.
    """

    reads = frozenset({"gradients", "graph"})
    settings_class = WalkSettings
    fills_budget = False

    def __init__(self, settings: WalkSettings | None = None) -> None:
        self._settings = settings or WalkSettings()
        self._known: dict[int, tuple[Target, CoreKnowledge]] = {}

    def knowledge(self, target: Target) -> CoreKnowledge:
        """Components of the target, computed once; rows of zeros are left out.

        Raises:
            InputError: the target has no components.
        """
        if id(target) not in self._known:
            usable = target.features[np.any(target.features != 0, axis=1)]
            found = core_knowledge(
                usable,
                explained_variance=self._settings.explained_variance,
                pca=self._settings.pca,
                orient=self._settings.orient,
            )
            self._known[id(target)] = target, found  # the target is held, so its id stays its own
        return self._known[id(target)][1]

    def directions(self, target: Target) -> NDArray[np.floating]:
        return self.knowledge(target).directions

    def select(
        self,
        pool: Pool,
        targets: Sequence[Target],
        products: Sequence[NDArray[np.float32]],
        budget: Budget,
        pieces: Pieces = Pieces(),  # noqa: B008  it is immutable
    ) -> Selection:
        """Split the budget over the components, and walk for one after another.

        If the budget is in tokens, the next component gets what a component has left.
        """
        assert pool.features is not None
        known = self._together(targets)
        sources = list(zip(known.mean_of.tolist(), known.number.tolist(), strict=True))
        walk = Walk(
            pool.features,
            pool.neighbors,
            [products[target][component] for target, component in sources],
            pool.free,
            self._settings,
        )
        reach = [self._reach(own[-1], pool.free) for own in products]
        budgets = split_budget(budget.amount, known.weights)
        earlier = list(pieces.earlier)
        picks = [pick for piece in earlier for pick in piece]
        walk.repeat(picks)
        spent = sum(budget.cost(pick.row) for pick in picks)
        progress = _Progress(pieces.label, budget, spent)
        for component in range(len(earlier), len(budgets)):
            own, room = [], budgets[component]
            if budget.tokens is not None:
                room = sum(budgets[: component + 1]) - spent
            # Products of a few rows are too small to share: threads that wait for each other made
            # them 17 times slower on a busy machine (benchmarks/walk.py).
            with threadpool_limits(1, "blas"):
                near = reach[known.mean_of[component]]
                for pick in walk.component(component, room, budget.cost, near):
                    own.append(pick)
                    spent += budget.cost(pick.row)
                    progress.step(spent)
            picks += own
            pieces.save(component, own)
        details = _details(picks, known, budgets)
        _log_steps(pieces.label, details["per_component"])
        return Selection(picks=picks, details=details, why_short=self._why_short())

    def _together(self, targets: Sequence[Target]) -> CoreKnowledge:
        if len(targets) == 1:
            return self.knowledge(targets[0])
        each = {target.name: self.knowledge(target) for target in targets}
        return joint_knowledge(each, {target.name: target.weight for target in targets})

    def _reach(
        self, cosines: NDArray[np.float32], free: NDArray[np.bool_]
    ) -> NDArray[np.bool_] | None:
        """Rows [n] with the largest cosines to a target's mean, `within` as a share of the pool.

        None stands for all rows.
        """
        if self._settings.within >= 1:
            return None
        rows = np.flatnonzero(free)
        count = max(1, round(self._settings.within * len(rows)))
        nearest = np.zeros(len(free), dtype=bool)
        nearest[rows[np.argsort(-cosines[rows], kind="stable")[:count]]] = True
        return nearest

    def _why_short(self) -> str:
        if self._settings.on_exhausted == "stop":
            return "nothing else qualified, and on_exhausted is stop"
        if self._settings.within < 1:
            return "every usable row within the nearest of the pool is picked; raise within"
        return "every usable row is picked"


def _details(picks: Sequence[Pick], known: CoreKnowledge, budgets: Sequence[int]) -> dict[str, Any]:
    """What summary.json says of the components."""
    counts = Counter((pick.component, pick.step) for pick in picks)
    for pick in picks:
        for rule in PassedOver._fields:
            counts[pick.component, rule] += getattr(pick, rule)
    return {
        "components": len(budgets),
        "per_component": [
            ({"target": known.targets[c]} if known.targets else {})
            | {
                "component": c,
                "explained_variance_ratio": float(known.explained_variance_ratio[c]),
                "weight": float(known.weights[c]),
                "budget": budgets[c],
                "selected": sum(counts[c, step] for step in ("anchor", "neighbor", "fallback")),
                "anchors": counts[c, "anchor"],
                "neighbors": counts[c, "neighbor"],
                "fallbacks": counts[c, "fallback"],
            }
            | {rule: counts[c, rule] for rule in PassedOver._fields}
            for c in range(len(budgets))
        ],
    }


def _log_steps(label: str, components: Sequence[dict[str, Any]]) -> None:
    names = "anchors", "neighbors", "fallbacks", *PassedOver._fields
    log.info(
        "%s: %d anchors, %d neighbors, %d fallbacks; nearer neighbors passed over: "
        "%d conflicting, %d inconsistent",
        label,
        *(sum(component[name] for component in components) for name in names),
    )


class _Progress:
    """A log line every so often: the amount picked, its rate, and the time left at that rate."""

    def __init__(self, label: str, budget: Budget, earlier: int, every_seconds: float = 10) -> None:
        self._label, self._budget, self._earlier = label, budget, earlier
        self._every_seconds = every_seconds
        self._began = self._said = time.monotonic()
        if earlier:
            of = f"{earlier} of {budget.amount} {budget.unit}"
            log.info("%s: an earlier run picked %s", label, of)

    def step(self, picked: int) -> None:
        now = time.monotonic()
        if now - self._said < self._every_seconds:
            return
        self._said = now
        rate = (picked - self._earlier) / (now - self._began)
        log.info(
            "%s: %d of %d %s picked, %.1f a second, about %.0f s left",
            self._label,
            picked,
            self._budget.amount,
            self._budget.unit,
            rate,
            (self._budget.amount - picked) / rate,
        )
