"""How a kNN graph is searched for, and the pieces that its work is cut into."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from g2is_ray.config import GraphSettings
from g2is_ray.features import GradientSet
from g2is_ray.workspace import Workspace, part_name

_EXACT_PRODUCTS = {"cpu": 2e12, "cuda": 2e16}  # rows² x dimensions that take seconds
_SAMPLE = 1024  # rows whose exact neighbors are found: half to choose the probe, half to check it
_SHARE_OF_MEMORY = 0.5  # for base rows; the rest for queries, products and the process itself

PLAN = "plan"


@dataclass(frozen=True, kw_only=True)
class GraphPlan:
    """How a graph is searched for; decided once per graph and kept in its folder."""

    search: Literal["exact", "ivf", "faiss"]
    groups: list[list[int]]  # parts searched among together
    lists: int = 0
    probe: int = 0
    sample: list[int] | None = None  # rows whose exact neighbors are known


@dataclass(frozen=True, kw_only=True)
class GraphTask:
    """A piece of work.

    sample: find the sample's exact neighbors among the rows of `part`.
    train:  make the lists.
    tune:   find how many lists must be probed.
    assign: find the lists near each row of `part`.
    pair:   find the neighbors of the rows of `part` in `group`.
    merge:  take the best of the pairs of `part`.
    """

    kind: Literal["sample", "train", "tune", "assign", "pair", "merge"]
    part: int = 0
    group: int = 0

    @property
    def piece(self) -> str:
        """Name of its receipt within the graph's folder."""
        if self.kind == "merge":
            return part_name(self.part)
        if self.kind == "pair":
            return f"pair-{self.part:05d}-{self.group:05d}"
        return f"{self.kind}-{self.part:05d}"

    def __str__(self) -> str:
        return self.piece


def make_plan(
    gradients: GradientSet, settings: GraphSettings, memory_bytes: int, device: str
) -> GraphPlan:
    """Decide how to search.

    Args:
        memory_bytes: that a worker may take, on the device that it computes on.
        device: `cuda` or `cpu`.
    """
    rows, dimensions = gradients.rows, gradients.dimensions
    search: Literal["exact", "ivf", "faiss"] = "faiss"
    if settings.graph == "auto":
        search = "exact" if rows**2 * dimensions <= _EXACT_PRODUCTS[device] else "ivf"
    elif settings.graph in ("exact", "ivf"):
        search = "exact" if settings.graph == "exact" else "ivf"
    everything = list(range(gradients.parts))
    if search == "faiss":
        groups = [everything]
    else:
        row_bytes = dimensions * (2 if device == "cuda" else 4)
        room = _SHARE_OF_MEMORY * memory_bytes / row_bytes
        groups = _groups(gradients.part_rows, room)
    sample = None if search == "exact" else _sample(gradients)
    lists = 2 ** round(math.log2(max(4.0, 4 * math.sqrt(rows)))) if search == "ivf" else 0
    return GraphPlan(search=search, groups=groups, lists=lists, sample=sample)


def _groups(part_rows: Sequence[int], room: float) -> list[list[int]]:
    """Runs of parts that hold at most `room` rows together; a single part may exceed it."""
    groups: list[list[int]] = []
    held = 0
    for part, count in enumerate(part_rows):
        if not groups or held + count > room:
            groups.append([])
            held = 0
        groups[-1].append(part)
        held += count
    return groups


def _sample(gradients: GradientSet) -> list[int]:
    """Rows, drawn at random, that the graph is compared with exact search on."""
    valid = gradients.valid_rows()
    rng = np.random.default_rng(0)
    return sorted(rng.choice(valid, size=min(_SAMPLE, len(valid)), replace=False).tolist())


def write_plan(workspace: Workspace, stage: str, plan: GraphPlan) -> None:
    workspace.commit(stage, PLAN, {}, asdict(plan))


def read_plan(workspace: Workspace, stage: str) -> GraphPlan | None:
    """The plan that the graph was begun with."""
    receipt = workspace.receipt(stage, PLAN)
    if receipt is None:
        return None
    return GraphPlan(**{name: receipt[name] for name in GraphPlan.__dataclass_fields__})


def steps(plan: GraphPlan, parts: int) -> Iterator[list[GraphTask]]:
    """Tasks in order of work; those of one list may be done by any workers at once."""
    if plan.sample is not None:
        yield [GraphTask(kind="sample", part=part) for part in range(parts)]
    if plan.search == "ivf":
        yield [GraphTask(kind="train")]
        yield [GraphTask(kind="tune")]
        yield [GraphTask(kind="assign", part=part) for part in range(parts)]
    yield [
        GraphTask(kind="pair", part=part, group=group)
        for group in range(len(plan.groups))
        for part in range(parts)
    ]
    yield merges(parts)


def merges(parts: int) -> list[GraphTask]:
    """The tasks after which the graph is there."""
    return [GraphTask(kind="merge", part=part) for part in range(parts)]
