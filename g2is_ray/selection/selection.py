"""From gradients, graph and target to a selection and its summary."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from g2is_ray.config import WalkSettings
from g2is_ray.data.examples import ExampleSet
from g2is_ray.errors import InputError
from g2is_ray.features.rows import Rows
from g2is_ray.selection.budget import Budget, row_budget
from g2is_ray.selector.interface import Pool, Selector, Target
from g2is_ray.selector.knowledge import CoreKnowledge, core_knowledge, split_budget
from g2is_ray.selector.walk import Neighbors, PassedOver, Pick, Walk, align
from g2is_ray.workspace.layout import POOL
from g2is_ray.workspace.workspace import STAGE_RECEIPT, Workspace

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

    def summary(self) -> dict[str, Any]:
        """Budget, picks and components, in numbers."""
        counts = Counter((pick.component, pick.step) for pick in self.picks)
        for pick in self.picks:
            for rule in PassedOver._fields:
                counts[pick.component, rule] += getattr(pick, rule)
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
                    "selected": sum(counts[c, step] for step in ("anchor", "neighbor", "fallback")),
                    "anchors": counts[c, "anchor"],
                    "neighbors": counts[c, "neighbor"],
                    "fallbacks": counts[c, "fallback"],
                }
                | {rule: counts[c, rule] for rule in PassedOver._fields}
                for c in range(len(self.budgets))
            ],
        }


def pick_lines(picks: Sequence[Pick], ids: Sequence[str] | None = None) -> bytes:
    """JSON lines of picks, with the rows' ids if given."""
    records = [asdict(pick) for pick in picks]
    for record, own in zip(records, ids or [], strict=False):
        record["id"] = own
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def read_rows(workspace: Workspace, stage: str) -> list[int]:
    """Pool rows of a finished selection, in the order of picking.

    Raises:
        WorkspaceError: it is not finished, or damaged.
    """
    workspace.piece(stage, STAGE_RECEIPT)  # a truncated one would be read in part
    return [pick["row"] for pick in read_picks(workspace, stage, ExampleSet(workspace, POOL).rows)]


def read_picks(workspace: Workspace, stage: str, pool_rows: int) -> list[dict[str, Any]]:
    """Picks of a selection of a pool of so many rows, as `pick_lines` wrote them.

    Raises:
        WorkspaceError: the file is damaged, or a pick is none of the pool's rows.
    """
    path = f"{stage}/selection.jsonl"
    lines = workspace.read_bytes(path).splitlines()
    with workspace.understanding(path):
        picks: list[dict[str, Any]] = [json.loads(line) for line in lines]
        if not all(type(pick["row"]) is int and 0 <= pick["row"] < pool_rows for pick in picks):
            raise ValueError
    return picks


def knowledge_of(
    target: NDArray[np.floating], dimensions: int, settings: WalkSettings
) -> CoreKnowledge:
    """Components of a target for a pool of so many dimensions.

    Args:
        target: target gradients [m, d]; rows of zeros are left out.

    Raises:
        InputError: dimensions differ, or the target has no components.
    """
    check_dimensions(dimensions, target)
    return core_knowledge(
        target[np.any(target != 0, axis=1)],
        explained_variance=settings.explained_variance,
        pca=settings.pca,
        orient=settings.orient,
    )


def check_dimensions(dimensions: int, target: NDArray[np.floating]) -> None:
    """Refuse a target [m, d] of other dimensions, before a graph is built for it.

    Raises:
        InputError: dimensions differ.
    """
    if dimensions != target.shape[1]:
        raise InputError(
            f"pool gradients have {dimensions} dimensions, but target gradients {target.shape[1]}"
        )


def select(
    x: Rows, neighbors: Neighbors, target: NDArray[np.floating], settings: WalkSettings
) -> Selection:
    """Select rows of the pool for a target; the arguments are as in `knowledge_of` and `Walk`."""
    budget = row_budget(len(x), settings.fraction)
    knowledge = knowledge_of(target, x.dimensions, settings)
    [along], valid = align(x, [knowledge.directions])
    return carry_out(knowledge, x, neighbors, along, valid, settings, budget)


def carry_out(
    knowledge: CoreKnowledge,
    x: Rows,
    neighbors: Neighbors,
    along: NDArray[np.float32],
    valid: NDArray[np.bool_],
    settings: WalkSettings,
    budget: Budget,
    *,
    label: str = "walk",
    earlier: Sequence[list[Pick]] = (),
    save: Callable[[int, list[Pick]], None] | None = None,
) -> Selection:
    """Split the budget over the components, and walk one after another.

    Of a budget in tokens, what a component has left goes to the next.

    Args:
        along, valid: what `align` gives for the knowledge's directions.
        label: heads the log lines.
        earlier: picks of the first components, if an earlier walk finished those.
        save: is given each further component and its picks as soon as they are made.
    """
    budgets = split_budget(budget.amount, knowledge.weights)
    means = along[len(budgets) :]
    reach = [
        _nearest(own, valid, settings.within) if settings.within < 1 else None for own in means
    ]
    walk = Walk(x, neighbors, along, valid, settings)
    picks = [pick for piece in earlier for pick in piece]
    walk.repeat(picks)
    spent = sum(budget.cost(pick.row) for pick in picks)
    progress = _Progress(label, budget, spent)
    for component in range(len(earlier), len(budgets)):
        own, room = [], budgets[component]
        if budget.tokens is not None:
            room = sum(budgets[: component + 1]) - spent
        # Products of a few rows are too small to share: threads that wait for each other made
        # them 17 times slower on a busy machine (benchmarks/walk.py).
        with threadpool_limits(1, "blas"):
            near = reach[knowledge.mean_of[component]]
            for pick in walk.component(component, room, budget.cost, near):
                own.append(pick)
                spent += budget.cost(pick.row)
                progress.step(spent)
        picks += own
        if save:
            save(component, own)
    if budget.tokens is None and spent < budget.amount:
        log.warning("%s: %d of %d picked: %s", label, spent, budget.amount, _why_short(settings))
    selection = Selection(picks=picks, knowledge=knowledge, budgets=budgets)
    _log_steps(label, selection)
    return selection


def _nearest(
    products: NDArray[np.float32], valid: NDArray[np.bool_], share: float
) -> NDArray[np.bool_]:
    """Which rows [n] are among this share of the valid ones, those with the largest products."""
    rows = np.flatnonzero(valid)
    count = max(1, round(share * len(rows)))
    nearest = np.zeros(len(valid), dtype=bool)
    nearest[rows[np.argsort(-products[rows], kind="stable")[:count]]] = True
    return nearest


def _why_short(settings: WalkSettings) -> str:
    if settings.on_exhausted == "stop":
        return "nothing else qualified, and on_exhausted is stop"
    if settings.within < 1:
        return "every usable row within the nearest of the pool is picked; raise within"
    return "every usable row is picked"


def _log_steps(label: str, selection: Selection) -> None:
    components = selection.summary()["per_component"]
    names = "anchors", "neighbors", "fallbacks", *PassedOver._fields
    log.info(
        "%s: %d anchors, %d neighbors, %d fallbacks; nearer neighbors passed over: "
        "%d conflicting, %d inconsistent",
        label,
        *(sum(component[name] for component in components) for name in names),
    )


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A target of a selector, and how much of the budget it gets relative to the others."""

    target: Target
    products: NDArray[np.float32]  # [k, n] of the selector's directions for the target
    weight: float = 1.0


def choose(selector: Selector, pool: Pool, aims: Sequence[Aim], budget: Budget) -> list[Pick]:
    """Rows that a selector picks for one target after another, within the budget.

    What a target has left of its share goes to the next.

    Raises:
        InputError: the selector picks a row that it may not.
    """
    weights = np.array([aim.weight for aim in aims])
    rooms = np.cumsum(split_budget(budget.amount, weights / weights.sum())).tolist()
    picks: list[Pick] = []
    free, spent = pool.free.copy(), 0
    for aim, room in zip(aims, rooms, strict=True):
        own = replace(pool, free=free.copy())
        choices = iter(selector.picks(own, aim.target, aim.products))
        while spent < room and (choice := next(choices, None)):
            row, score = choice
            if not (0 <= row < len(free) and free[row]):
                raise InputError(
                    f"{type(selector).__name__} picked row {row}, which is picked already or not "
                    "free: picks may yield each free row once"
                )
            if spent + budget.cost(row) > room:
                break
            free[row] = False
            spent += budget.cost(row)
            similarity = None if math.isnan(score) else float(score)
            picks.append(
                Pick(
                    rank=len(picks),
                    row=int(row),
                    component=None,
                    step=selector.step,
                    similarity=similarity,
                )
            )
    return picks


class _Progress:
    """A log line every so often: what is picked, its rate, and the time left at that rate."""

    def __init__(self, label: str, budget: Budget, earlier: int) -> None:
        self._label, self._budget, self._earlier = label, budget, earlier
        self._began = self._said = time.monotonic()
        if earlier:
            of = f"{earlier} of {budget.amount} {budget.unit}"
            log.info("%s: %s were picked before", label, of)

    def step(self, picked: int) -> None:
        now = time.monotonic()
        if now - self._said < _PROGRESS_SECONDS:
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
