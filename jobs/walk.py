"""The walk on arrays that somebody already has, without a workspace."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic.dataclasses import dataclass

from g2is_ray.config import (
    PRESETS,
    STRICT,
    BudgetSettings,
    Count,
    Share,
    Text,
    WalkSettings,
    build,
    preset_values,
)
from g2is_ray.errors import SettingError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ArraySettings:
    """Arrays"""

    train: Text
    """Pool gradients [n, d], .npy, .safetensors or .pt; they need not be normalized."""
    target: Text
    """Target gradients [m, d]; components are taken of them as they are."""
    graph: str | None = None
    """Neighbor rows [n, k] in descending similarity; left out, the graph is built."""
    neighbors: Count = 32
    """Neighbors of each row, where the graph is built."""
    center: bool = False
    """Subtract the mean pool gradient before normalizing, in walk and built graph."""
    fraction: Share = BudgetSettings.fraction
    """Share of the rows to select, in (0, 1]."""
    output: Text
    """Folder for selection.jsonl and summary.json."""


DEFAULTS = PRESETS["paper"] | {"on_exhausted": "restart"}
"""Arrays are taken as they are, as published; the budget is filled."""


def walk_arrays(given: Mapping[str, Any]) -> None:
    """Select rows of `train` for `target` and write them to `output`."""
    from g2is_ray.features.arrays import gradients_from, neighbors_from
    from g2is_ray.features.rows import ArrayRows
    from g2is_ray.features.vectors import mean_of_valid, normalize
    from g2is_ray.graph.search import knn_graph
    from g2is_ray.selection.arrays import select_from
    from g2is_ray.selection.budget import row_budget
    from g2is_ray.selection.files import pick_lines
    from g2is_ray.selection.scan import check_dimensions
    from g2is_ray.selector.picks import Pieces
    from g2is_ray.selector.walking import GradientWalk
    from g2is_ray.workspace.workspace import Workspace

    values = {**DEFAULTS, **preset_values(given.get("preset")), **given}
    arrays, settings = build(ArraySettings, values), build(WalkSettings, values)
    if arrays.graph is not None and "neighbors" in given:
        raise SettingError("graph and neighbors exclude each other: a given graph has its own k")
    raw = gradients_from(arrays.train)
    target = gradients_from(arrays.target)
    check_dimensions(raw.shape[1], target)
    budget = row_budget(len(raw), arrays.fraction)  # refused before the graph is built
    output = Workspace(arrays.output)
    x = normalize(raw, mean_of_valid(raw) if arrays.center else None)
    neighbors = (
        knn_graph(x, arrays.neighbors)
        if arrays.graph is None
        else neighbors_from(arrays.graph, len(x))
    )
    walk = GradientWalk(settings)
    selection = select_from(walk, ArrayRows(x), neighbors, target, budget, Pieces(label="walk"))
    chosen = len(selection.picks)
    if chosen < budget.amount:
        log.warning("walk: %d of %d picked: %s", chosen, budget.amount, selection.why_short)
    summary = {"budget": budget.amount, "selected": chosen, **selection.details}
    output.storage.write_bytes("selection.jsonl", pick_lines(selection.picks))
    output.storage.write_json("summary.json", summary)
    log.info(
        "walk: %d of %d selected over %d components, in %s",
        summary["selected"],
        summary["budget"],
        summary["components"],
        arrays.output,
    )
