"""The walk: beside a literal transcription of the published procedure, at size, and by budget.

    python benchmarks/walk.py fallbacks --folder runs/walk-50k
    python benchmarks/walk.py large --folder runs/walk-1m
    python benchmarks/walk.py scaling --folder runs/walk-1m --plot docs/walk.svg

Gradients are synthetic: unit rows around the centers of clusters, which lie around topics, with
a direction that all have in common, as float16 parts of a workspace. The neighbors of a row are
the nearest of its own cluster, exactly; no graph is searched. The target is rows of a few topics.
Data is made once, by a process of its own, and kept in the folder; lengths are all 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import g2is_ray.selector.walk
from g2is_ray.config import WalkSettings
from g2is_ray.features.rows import map_neighbors
from g2is_ray.features.store import FeatureSet, feature_files
from g2is_ray.features.vectors import normalize
from g2is_ray.selection.budget import row_budget
from g2is_ray.selection.scan import scan
from g2is_ray.selector.interface import Pool, Target
from g2is_ray.selector.picks import Selection
from g2is_ray.selector.walking import GradientWalk
from g2is_ray.workspace.storage import array_bytes
from g2is_ray.workspace.workspace import Workspace, part_name

PART_ROWS = 4096
TOPICS, TARGET_TOPICS, TARGET_ROWS = 64, 8, 64
COMMON, TOPIC, CLUSTER, OWN = 1.0, 0.7, 0.8, 1.0  # lengths of what a row is the sum of


# ---- data ----------------------------------------------------------------------


def make(folder: Path, rows: int, dimensions: int, cluster_rows: int, neighbors: int) -> None:
    """Write gradients, target and graph; row i belongs to cluster i modulo their number."""
    held, rng = Workspace(str(folder)), np.random.default_rng(0)
    clusters = rows // cluster_rows
    common, *topics = unit_rows(rng, 1 + TOPICS, dimensions)
    centers = COMMON * common + TOPIC * np.array(topics)[rng.integers(0, TOPICS, clusters)]
    centers += CLUSTER * unit_rows(rng, clusters, dimensions)
    for first in range(0, rows, PART_ROWS):
        mine = np.arange(first, min(first + PART_ROWS, rows))
        own = unit_rows(np.random.default_rng([1, first]), len(mine), dimensions)
        x = normalize(centers[mine % clusters] + OWN * own)
        part = first // PART_ROWS
        held.stage("gradients").commit(part_name(part), feature_files(part, x), {"rows": len(x)})
    parts = -(-rows // PART_ROWS)
    held.stage("gradients").conclude({"rows": rows, "parts": parts, "invalid": 0})
    of_target = np.array(topics)[rng.integers(0, TARGET_TOPICS, TARGET_ROWS)]
    target = COMMON * common + TOPIC * of_target + OWN * unit_rows(rng, TARGET_ROWS, dimensions)
    held.storage.write_bytes("target.npy", array_bytes(normalize(target)))
    found = nearest_of_cluster(FeatureSet(held, "gradients", center=True), clusters, neighbors)
    for part, first in enumerate(range(0, rows, PART_ROWS)):
        own_rows = array_bytes(found[first : first + PART_ROWS])
        held.storage.write_bytes(f"graph/{part_name(part)}.neighbors.npy", own_rows)
    held.stage("graph").conclude({"rows": rows, "parts": parts})


def unit_rows(rng: np.random.Generator, rows: int, dimensions: int) -> np.ndarray:
    return normalize(rng.standard_normal((rows, dimensions), dtype=np.float32))


def nearest_of_cluster(x: FeatureSet, clusters: int, k: int) -> np.ndarray:
    """For every row the k nearest rows of its cluster, [n, k] in descending cosine, -1 if fewer."""
    found = np.full((len(x), k), -1, dtype=np.int32)
    for cluster in range(clusters):
        mine = np.arange(cluster, len(x), clusters)
        rows = x.take(mine)
        cosines = rows @ rows.T
        np.fill_diagonal(cosines, -np.inf)
        near = np.argsort(-cosines, axis=1)[:, : min(k, len(mine) - 1)]
        found[mine, : near.shape[1]] = mine[near]
    return found


def prepared(folder: Path, *shape: int) -> tuple[FeatureSet, np.ndarray]:
    """Pool and target of these sizes (see `make`); made by another process if not there."""
    held, made = Workspace(str(folder)), folder / "made.json"
    if not made.exists() or json.loads(made.read_text()) != list(shape):
        child = multiprocessing.get_context("spawn").Process(target=make, args=(folder, *shape))
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit("the data could not be made")
        made.write_text(json.dumps(shape))
    return FeatureSet(held, "gradients", center=True), held.storage.read_array("target.npy")


# ---- the yardstick ---------------------------------------------------------------


def published(
    x: np.ndarray,
    neighbors: np.ndarray,
    components: np.ndarray,
    budgets: Sequence[int],
    delta: float,
) -> Iterator[int]:
    """The published procedure with `restart`: recomputes S at every step, for all rows."""
    unused = np.ones(len(x), dtype=bool)
    for component, budget in zip(components.astype(np.float32), budgets, strict=True):
        products = x @ component
        members: list[int] = []
        for _ in range(budget):
            found = None
            if members:
                near = neighbors[members[-1]]
                near = near[near >= 0]
                near = near[unused[near]]
                near = near[qualify(x, near, members, component, delta)]
                found = near[0] if len(near) else None
                if found is None:
                    rows = np.flatnonzero(unused)
                    rows = rows[qualify(x, rows, members, component, delta)]
                    found = rows[np.argmax(products[rows])] if len(rows) else None
            if found is None:
                rows = np.flatnonzero(unused)
                members, found = [], rows[np.argmax(products[rows])]
            members.append(int(found))
            unused[found] = False
            yield int(found)


def qualify(
    x: np.ndarray, rows: np.ndarray, members: list[int], component: np.ndarray, delta: float
) -> np.ndarray:
    """Which rows have no negative dot product with a member, and keep the path consistent."""
    total = x[members].sum(axis=0, dtype=np.float64)
    now = abs(total @ component) / np.linalg.norm(total)
    good = np.zeros(len(rows), dtype=bool)
    for first in range(0, len(rows), PART_ROWS):
        x_bd = x[rows[first : first + PART_ROWS]]
        left = np.flatnonzero((x_bd @ x[members].T >= 0).all(axis=1))
        sums = total + x_bd[left]
        consistent = np.abs(sums @ component) / np.linalg.norm(sums, axis=1) >= delta * now
        good[first + left] = consistent
    return good


# ---- measurements ----------------------------------------------------------------


class Products:
    """Counts the dot products that a walk forms, until stopped."""

    def __init__(self) -> None:
        self.formed = 0
        self._form = g2is_ray.selector.walk.dot_products
        g2is_ray.selector.walk.dot_products = self

    def __call__(self, x_bd: np.ndarray, members_sd: np.ndarray) -> np.ndarray:
        self.formed += len(x_bd) * len(members_sd)
        return self._form(x_bd, members_sd)

    def stop(self) -> None:
        g2is_ray.selector.walk.dot_products = self._form


class Clock:
    """Wall and processor seconds; the latter say more on a machine that others use too."""

    def __init__(self) -> None:
        self._began = time.monotonic(), time.process_time()

    def read(self) -> tuple[float, float]:
        wall, processor = self._began
        return time.monotonic() - wall, time.process_time() - processor


def walked(
    folder: Path, x: FeatureSet, target: np.ndarray, settings: WalkSettings, fraction: float
) -> tuple[Selection, float]:
    """The selection, and the processor seconds it took, its pass over the pool included."""
    clock = Clock()
    neighbors = map_neighbors(Workspace(str(folder)), "graph")
    walk, wanted = GradientWalk(settings), Target(features=target, texts=[], subtasks=[])
    products, valid = scan(x, [walk.directions(wanted)])
    passed, _ = clock.read()
    pool = Pool(free=valid, features=x, neighbors=neighbors)
    selection = walk.select(pool, [wanted], products, row_budget(len(x), fraction))
    wall, processor = clock.read()
    steps = Counter(pick.step for pick in selection.picks)
    print(
        f"{len(selection.picks)} of {len(x)} rows, {selection.details['components']} components, "
        f"{dict(steps)}: {wall:.1f} s ({processor:.1f} s of processor time), of which "
        f"{passed:.1f} s for the pass over the pool",
        flush=True,
    )
    return selection, processor


def fallbacks(given: argparse.Namespace) -> None:
    """A case where most picks are fallbacks, beside the yardstick."""
    x, target = prepared(given.folder, 50_000, 1024, 2, 1)
    settings = WalkSettings(pca="centered", orient=False)
    selection, own = walked(given.folder, x, target, settings, 0.05)
    lists = map_neighbors(Workspace(str(given.folder)), "graph")
    arrays = x.read_all(), lists.take(np.arange(len(x)))
    wanted = Target(features=target, texts=[], subtasks=[])
    components, clock, rows = GradientWalk(settings).knowledge(wanted).components, Clock(), []
    budgets = [one["budget"] for one in selection.details["per_component"]]
    for row in published(*arrays, components, budgets, settings.delta):
        rows.append(row)
        if len(rows) % 250 == 0 or len(rows) == len(selection.rows):
            wall, processor = clock.read()
            same = rows == selection.rows[: len(rows)]
            print(
                f"literal transcription: {len(rows)} picks, {wall:.1f} s ({processor:.1f} s of "
                f"processor time), same as the walk's: {same}",
                flush=True,
            )
    print(f"ratio of processor time: {processor / own:.0f}")


def large(given: argparse.Namespace) -> None:
    """A million rows from files, for components with and without the target's mean in them."""
    x, target = prepared(given.folder, 1_000_000, 1024, 64, 32)
    walked(given.folder, x, target, WalkSettings(), 0.01)
    walked(given.folder, x, target, WalkSettings(pca="centered", orient=False), 0.01)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"at most {peak:.2f} GiB resident, pages of the mapped files among them")


def scaling(given: argparse.Namespace) -> None:
    """Seconds and dot products of growing budgets, and a plot of one over the other."""
    x, target = prepared(given.folder, 1_000_000, 1024, 64, 32)
    points = []
    for budget in (2500, 7500, 12_500, 17_500):
        products = Products()
        _, seconds = walked(given.folder, x, target, WalkSettings(), budget / len(x))
        products.stop()
        points.append((products.formed, seconds))
        print(f"budget {budget}: {products.formed:,} dot products", flush=True)
    if given.plot:
        given.plot.write_text(plot(points), encoding="utf-8")


def plot(points: Sequence[tuple[int, float]]) -> str:
    """An SVG of seconds over millions of dot products."""
    width, height, margin = 480, 300, 48
    most, longest = (max(values) for values in zip(*points, strict=True))
    at = [
        (
            margin + (width - 2 * margin) * formed / most,
            height - margin - (height - 2 * margin) * seconds / longest,
            seconds,
            formed,
        )
        for formed, seconds in points
    ]
    line = " ".join(f"{x:.0f},{y:.0f}" for x, y, *_ in at)
    marks = "".join(
        f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3"/>'
        f'<text x="{x:.0f}" y="{height - margin + 16}">{formed / 1e6:.0f}</text>'
        f'<text x="{x:.0f}" y="{y - 8:.0f}">{seconds:.0f} s</text>'
        for x, y, seconds, formed in at
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11" text-anchor="middle">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<path d="M{margin},{margin}V{height - margin}H{width - margin}" fill="none" '
        f'stroke="gray"/><polyline points="{line}" fill="none" stroke="steelblue"/>{marks}'
        f'<text x="{width / 2}" y="{height - 10}">millions of dot products with picks</text>'
        f'<text x="{width / 2}" y="20">processor time of the walk, its pass over the pool '
        "included</text></svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("case", choices=["fallbacks", "large", "scaling"])
    parser.add_argument("--folder", required=True, type=Path, help="where the data is kept")
    parser.add_argument("--plot", type=Path, help="SVG file for the plot of scaling")
    given = parser.parse_args()
    {"fallbacks": fallbacks, "large": large, "scaling": scaling}[given.case](given)


if __name__ == "__main__":
    main()
