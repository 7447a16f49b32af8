"""How a kNN graph is searched for, and the pieces that its work is cut into."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pydantic

from g2is_ray.config import GraphSettings
from g2is_ray.features.store import MEAN, FeatureSet
from g2is_ray.workspace.storage import array_bytes
from g2is_ray.workspace.workspace import Workspace, part_name

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
    mean_rows: int = 0  # rows of the pool whose mean is subtracted; 0: no mean is subtracted

    @property
    def parts(self) -> int:
        """Number of parts in the graph."""
        return sum(map(len, self.groups))


_PLAN = pydantic.TypeAdapter(GraphPlan)


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
    features: FeatureSet, settings: GraphSettings, memory_bytes: int, device: str
) -> GraphPlan:
    """Decide how to search.

    Args:
        memory_bytes: memory that a worker may take on its device.
        device: `cuda` or `cpu`.
    """
    rows, dimensions = features.rows, features.dimensions
    search: Literal["exact", "ivf", "faiss"] = "faiss"
    if settings.graph == "auto":
        search = "exact" if rows**2 * dimensions <= _EXACT_PRODUCTS[device] else "ivf"
    elif settings.graph in ("exact", "ivf"):
        search = "exact" if settings.graph == "exact" else "ivf"
    everything = list(range(features.parts))
    groups = (
        [everything]
        if search == "faiss"
        else _groups(everything, features.part_rows, _room(dimensions, memory_bytes, device))
    )
    sample = None if search == "exact" else _sample(features)
    lists = 2 ** round(math.log2(max(4.0, 4 * math.sqrt(rows)))) if search == "ivf" else 0
    mean_rows = rows if settings.center else 0
    return GraphPlan(search=search, groups=groups, lists=lists, sample=sample, mean_rows=mean_rows)


def extended_plan(
    plan: GraphPlan, features: FeatureSet, memory_bytes: int, device: str
) -> GraphPlan:
    """The plan with new parts in further groups; a FAISS index takes all parts in one group."""
    sample = None if plan.sample is None else _sample(features)
    if plan.search == "faiss":
        return dataclasses.replace(plan, groups=[list(range(features.parts))], sample=sample)
    room = _room(features.dimensions, memory_bytes, device)
    more = _groups(range(plan.parts, features.parts), features.part_rows, room)
    return dataclasses.replace(plan, groups=plan.groups + more, sample=sample)


def _room(dimensions: int, memory_bytes: int, device: str) -> float:
    """Base rows that a worker holds at once."""
    return _SHARE_OF_MEMORY * memory_bytes / (dimensions * (2 if device == "cuda" else 4))


def _groups(parts: Iterable[int], part_rows: Sequence[int], room: float) -> list[list[int]]:
    """Runs of parts that hold at most `room` rows together; a single part may exceed it."""
    groups: list[list[int]] = []
    held = 0
    for part in parts:
        if not groups or held + part_rows[part] > room:
            groups.append([])
            held = 0
        groups[-1].append(part)
        held += part_rows[part]
    return groups


def _sample(features: FeatureSet) -> list[int]:
    """Rows, drawn at random, that the graph is compared with exact search on."""
    valid = features.valid_rows()
    rng = np.random.default_rng(0)
    return sorted(rng.choice(valid, size=min(_SAMPLE, len(valid)), replace=False).tolist())


def write_plan(workspace: Workspace, stage: str, plan: GraphPlan, features: FeatureSet) -> None:
    """Write the plan, and the mean that is subtracted from rows, if one is."""
    mean = features.mean
    files = {} if mean is None else {MEAN: array_bytes(mean)}
    workspace.stage(stage).commit(PLAN, files, asdict(plan))


def extend_plan(
    workspace: Workspace,
    stage: str,
    plan: GraphPlan,
    features: FeatureSet,
    memory_bytes: int,
    device: str,
) -> GraphPlan:
    """Extend a graph by the parts that were added to the pool.

    Finished pairs and lists are kept; merges, and the pairs of an index, are done again. Recall is
    measured on a new sample of the grown pool.
    """
    for part in range(plan.parts):
        workspace.storage.remove(f"{stage}/{GraphTask(kind='sample', part=part).piece}.json")
    if plan.search == "faiss":
        for part in range(plan.parts):
            workspace.storage.remove(f"{stage}/{GraphTask(kind='pair', part=part).piece}.json")
    for task in merges(plan.parts):
        workspace.storage.remove(f"{stage}/{task.piece}.json")
    extended = extended_plan(plan, features, memory_bytes, device)
    write_plan(workspace, stage, extended, features)
    return extended


def read_plan(workspace: Workspace, stage: str) -> GraphPlan | None:
    """The plan that the graph was begun with."""
    receipt = workspace.stage(stage).verified(PLAN)
    if receipt is None:
        return None
    with workspace.storage.understanding(f"{stage}/{PLAN}.json"):
        own = {name: receipt[name] for name in GraphPlan.__dataclass_fields__}
        return _PLAN.validate_python(own)


def exact_instead(
    workspace: Workspace, stage: str, plan: GraphPlan, features: FeatureSet
) -> GraphPlan:
    """Write and return a plan that compares all rows."""
    exact = dataclasses.replace(plan, search="exact", lists=0)
    write_plan(workspace, stage, exact, features)
    return exact


def preparation(plan: GraphPlan, parts: int) -> Iterator[list[GraphTask]]:
    """Lists of tasks, in order of work, that find how many lists must be probed.

    Any workers may do the tasks of one list at once; so it is for `comparison`.
    """
    if plan.sample is not None:
        yield [GraphTask(kind="sample", part=part) for part in range(parts)]
    if plan.search == "ivf":
        yield [GraphTask(kind="train")]
        yield [GraphTask(kind="tune")]


def comparison(plan: GraphPlan, parts: int) -> Iterator[list[GraphTask]]:
    """Lists of tasks, in order of work, that compare rows and write the graph."""
    if plan.search == "ivf":
        yield [GraphTask(kind="assign", part=part) for part in range(parts)]
    yield [
        GraphTask(kind="pair", part=part, group=group)
        for group in range(len(plan.groups))
        for part in range(parts)
    ]
    yield merges(parts)


def merges(parts: int) -> list[GraphTask]:
    """The tasks that finish the graph."""
    return [GraphTask(kind="merge", part=part) for part in range(parts)]
