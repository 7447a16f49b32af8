"""What each option of the walk changes, on a workspace that has gradients: a table per target.

    python benchmarks/walk_options.py --workspace runs/first --fraction 0.05 [--features embeddings]

Nothing is written or tuned: this says what is picked, not whether it helps. A graph that the
workspace lacks is built in memory. The columns conflicting and inconsistent count nearer neighbors
that were passed over; cos > 0.9 counts picks that have another so near. Cosines are of centered
features in every row, so that rows can be compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from g2is_ray.config import PRESETS, Features, WalkSettings, build
from g2is_ray.data.examples import ExampleSet
from g2is_ray.features.rows import map_neighbors
from g2is_ray.features.store import FeatureSet
from g2is_ray.graph.search import knn_graph
from g2is_ray.selection.budget import row_budget
from g2is_ray.selection.scan import scan
from g2is_ray.selector.interface import Neighbors, Pool, Target
from g2is_ray.selector.picks import PassedOver, Pieces, Selection
from g2is_ray.selector.walking import GradientWalk
from g2is_ray.workspace.layout import POOL, graph_stage
from g2is_ray.workspace.workspace import STAGE_RECEIPT, Workspace

PUBLISHED, RECOMMENDED = PRESETS["paper"], PRESETS["recommended"]
STEPS: dict[str, dict[str, Any]] = {  # each on top of those before it
    "published": {},
    "+ restart": {"on_exhausted": "restart"},
    "+ center": {"center": True},
    "+ uncentered": {"pca": "uncentered"},
    "+ orient": {"orient": True},
}
OPTIONS: dict[str, dict[str, Any]] = {  # each on top of the recommended preset alone
    "recommended": {},
    **{f"within {share}": {"within": share} for share in (0.5, 0.25, 0.1)},
}
COUNTED = ("anchors", "neighbors", "fallbacks", *PassedOver._fields)
COLUMNS = (
    *("walk", "rows", "own share", *COUNTED),
    *("cos > 0.9", "cos > 0.8", "pairs < 0", "cos to target", "supervised tokens"),
)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One row of a target's table."""

    target: str
    name: str
    center: bool
    settings: WalkSettings


def ablations(targets: list[str]) -> Iterator[Ablation]:
    values, rows = dict(PUBLISHED), {}
    for name, change in STEPS.items():
        values |= change
        rows[name] = dict(values)
    rows |= {name: RECOMMENDED | change for name, change in OPTIONS.items()}
    for target in targets:
        for name, own in rows.items():
            settings = build(WalkSettings, own)
            yield Ablation(target=target, name=name, center=own["center"], settings=settings)


class Walks:
    """All ablations, after one pass over the pool with its mean subtracted and one without."""

    def __init__(
        self, held: Workspace, features: Features, rows: list[Ablation], fraction: float
    ) -> None:
        self._features, self._fraction = features, fraction
        self.selections: dict[tuple[str, str], Selection] = {}
        for center in (False, True):
            self._walk(held, center, [row for row in rows if row.center == center])

    def _walk(self, held: Workspace, center: bool, rows: list[Ablation]) -> None:
        x = FeatureSet(held, self._features, center=center)
        neighbors = graph(held, x, center)
        walks = [GradientWalk(row.settings) for row in rows]
        targets = [Target(features=x.of_target(row.target), texts=[], subtasks=[]) for row in rows]
        products, valid = scan(
            x, [walk.directions(one) for walk, one in zip(walks, targets, strict=True)]
        )
        pool = Pool(free=valid, features=x, neighbors=neighbors)
        budget = row_budget(len(x), self._fraction)
        for row, walk, target, own in zip(rows, walks, targets, products, strict=True):
            self.selections[row.target, row.name] = walk.select(
                pool, [target], [own], budget, Pieces(label=row.name)
            )


def graph(held: Workspace, x: FeatureSet, center: bool) -> Neighbors:
    stage = graph_stage(center, x.kind)
    if held.stage(stage).verified(STAGE_RECEIPT):
        return map_neighbors(held, stage)
    return knn_graph(x.read_all(), 32)


class Measures:
    """Numbers about a selection that the walk itself does not know."""

    def __init__(self, held: Workspace, features: Features) -> None:
        pool = ExampleSet(held, POOL)
        self._groups = [row["group"] for row in pool.read_all(["group"])]
        self._tokens = pool.supervised_tokens()
        self._x = FeatureSet(held, features, center=True)
        self._held = held

    def mean(self, target: str) -> np.ndarray:
        """Mean feature [d] of a target."""
        return np.asarray(self._x.of_target(target).mean(axis=0))

    def line(self, name: str, selection: Selection, target: str, mean_d: np.ndarray) -> list[str]:
        """The numbers of one row of the table, as text."""
        components = selection.details["per_component"]
        x_sd = self._x.take(np.array(selection.rows))
        cosines_ss = x_sd @ x_sd.T
        pairs = cosines_ss[np.triu_indices(len(x_sd), 1)]
        np.fill_diagonal(cosines_ss, -1)
        nearest = cosines_ss.max(axis=1)
        return [
            name,
            str(len(x_sd)),
            self._own_share(selection.rows, target),
            *(str(sum(component[name] for component in components)) for name in COUNTED),
            *(str(int((nearest > bound).sum())) for bound in (0.9, 0.8)),
            f"{np.mean(pairs < 0):.0%}" if len(pairs) else "-",
            f"{float(np.mean(x_sd @ (mean_d / np.linalg.norm(mean_d)))):.3f}",
            str(int(self._tokens[selection.rows].sum())),
        ]

    def _own_share(self, rows: list[int], target: str) -> str:
        own = {row["group"] for row in ExampleSet(self._held, f"targets/{target}/val").read_all()}
        if not own & set(self._groups):
            return "-"
        return f"{np.mean([self._groups[row] in own for row in rows]):.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workspace", required=True, help="with features of pool and targets")
    parser.add_argument("--features", choices=get_args(Features), default="gradients")
    parser.add_argument("--fraction", type=float, default=0.05, help="share of the pool to select")
    parser.add_argument("--targets", nargs="*", help="all of the workspace by default")
    given = parser.parse_args()
    held = Workspace(given.workspace)
    targets = given.targets or held.storage.names("targets")
    rows = list(ablations(targets))
    walks, measures = (
        Walks(held, given.features, rows, given.fraction),
        Measures(held, given.features),
    )
    for target in targets:
        mean_d = measures.mean(target)
        print(f"\n{target}\n\n| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|")
        for row in rows:
            if row.target == target:
                selection = walks.selections[target, row.name]
                line = measures.line(row.name, selection, target, mean_d)
                print("| " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    main()
