"""A two-dimensional map of a sample of the pool, which contains every selected row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from g2is_ray.config import Features, GraphSettings
from g2is_ray.errors import InputError
from g2is_ray.features.store import FeatureSet
from g2is_ray.report.views import TargetView
from g2is_ray.workspace.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class MapPoints:
    """Points of the map, with their rows in the pool and their sources."""

    xy: NDArray[np.floating]  # [n, 2]
    rows: NDArray[np.integer]  # [n], rows of the pool
    groups: Sequence[str]  # n sources


def pool_map(
    workspace: Workspace,
    targets: Sequence[TargetView],
    groups: Sequence[str],
    settings: GraphSettings,
    *,
    most_points: int = 2000,
) -> MapPoints | None:
    """Return a map of the pool's features, with every selected row and a random sample.

    Args:
        workspace: read from.
        targets: their selections are on the map.
        groups: sources of all pool rows.
        settings: the kind of features, and whether they are centered. If the workspace has no
            features of that kind, the other kind is mapped.
        most_points: size of the map, unless more rows are selected.

    Returns:
        None if the workspace has no features.
    """
    kinds = (settings.features, *get_args(Features))
    kind = next((kind for kind in kinds if workspace.storage.exists(f"{kind}/receipt.json")), None)
    if kind is None:
        return None
    features = FeatureSet(workspace, kind, center=settings.center)
    picked = {
        pick.row
        for target in targets
        for view in (target.main, *target.others)
        for pick in view.picks
    }
    rest = np.setdiff1d(np.arange(features.rows), sorted(picked))
    room = min(len(rest), max(0, most_points - len(picked)))
    sample = np.random.default_rng(0).choice(rest, size=room, replace=False)
    rows = np.sort(np.concatenate([np.array(sorted(picked), dtype=np.int64), sample]))
    return map_points(features.take(rows), rows, [groups[row] for row in rows], 0)


def map_points(
    features: NDArray[np.floating], rows: NDArray[np.integer], groups: Sequence[str], seed: int
) -> MapPoints:
    """Lay features out in two dimensions: PCA to at most 50, then t-SNE.

    Fewer than 50 rows have too few neighbors for t-SNE and get the first two principal components.
    One thread computes, so that sums do not depend on the machine: about half a minute for 5,000
    rows. The same seed gives the same map.

    Args:
        features: unit rows, float [n, d].
        rows: row numbers of the features in the pool, int [n].
        groups: sources of the features, n.
        seed: of the random numbers of PCA and t-SNE.

    Raises:
        InputError: the three differ in length, or a feature is not finite.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    count = len(features)
    if not count == len(rows) == len(groups):
        raise InputError(
            f"pool map: needs one row number and one source per feature, got {count} features, "
            f"{len(rows)} rows and {len(groups)} sources"
        )
    x = np.asarray(features, dtype=np.float32)
    if not np.isfinite(x).all():
        raise InputError("pool map: features have entries that are not finite; recompute them")
    xy = np.zeros((count, 2), dtype=np.float32)
    dimensions = min(50, count - 1, x.shape[1])
    if dimensions > 0 and np.ptp(x, axis=0).any():
        with threadpool_limits(1):
            flat = PCA(dimensions, random_state=seed).fit_transform(x)
            if count >= 50 and dimensions >= 2:
                tsne = TSNE(init="pca", random_state=seed, n_jobs=1, perplexity=min(30, count / 4))
                flat = tsne.fit_transform(flat)
        xy[:, : min(2, dimensions)] = flat[:, :2]
    return MapPoints(xy=xy, rows=np.asarray(rows), groups=list(groups))
