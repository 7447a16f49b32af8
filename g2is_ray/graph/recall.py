"""Measures recall: the share of the exact kNN graph that an approximate graph has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from g2is_ray.features.store import FeatureSet
from g2is_ray.graph.plan import GraphTask, read_plan
from g2is_ray.graph.search import Nearest
from g2is_ray.workspace.workspace import Workspace, part_name


def sample_neighbors(
    workspace: Workspace, stage: str, parts: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return exact neighbors and cosines of the sample, each [s, k], over all parts."""
    nearest: Nearest | None = None
    for part in range(parts):
        name = f"{stage}/{GraphTask(kind='sample', part=part).piece}"
        rows, cosines = (
            workspace.storage.read_array(f"{name}.{k}.npy") for k in ("neighbors", "cosines")
        )
        if nearest is None:
            nearest = Nearest(np.full(len(rows), -1), rows.shape[1], torch.device("cpu"))
        nearest.offer_found(torch.from_numpy(rows), torch.from_numpy(cosines))
    assert nearest is not None
    return nearest.result()


def found_share(found: NDArray[np.bool_], exists: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the found share of each row's exact neighbors, [s]; 1 for rows without any."""
    return (found & exists).sum(axis=1) / np.maximum(exists.sum(axis=1), 1) + ~exists.any(axis=1)


def interval(shares: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95% confidence interval of the mean over sampled rows."""
    mean = float(shares.mean())
    spread = 1.96 * float(shares.std(ddof=1)) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0
    return max(0.0, mean - spread), min(1.0, mean + spread)


def measure_recall(workspace: Workspace, stage: str, features: FeatureSet) -> dict[str, Any]:
    """Measure recall@k of a merged graph on the half of the sample that did not set the probe.

    A neighbor as close as the k-th exact neighbor counts as found, because rows may be equal.

    Returns:
        `recall`, `recall_low` and `recall_high` (95% confidence), `recall_rows`.
    """
    plan = read_plan(workspace, stage)
    assert plan is not None
    if plan.sample is None:
        return {"recall": 1.0, "recall_low": 1.0, "recall_high": 1.0, "recall_rows": 0}
    exact, cosines = (found[1::2] for found in sample_neighbors(workspace, stage, features.parts))
    shares = []
    parts = np.searchsorted(features.first_rows, plan.sample[1::2], side="right") - 1
    for part in np.unique(parts):
        held = workspace.storage.read_array(f"{stage}/{part_name(int(part))}.similarities.npy")
        which = np.flatnonzero(parts == part)
        rows = np.array(plan.sample[1::2])[which] - features.first_rows[part]
        kth = np.where(exact[which] >= 0, cosines[which], np.inf).min(axis=1, keepdims=True)
        shares.append(found_share(held[rows] >= kth - 1e-5, exact[which] >= 0))
    merged = np.concatenate(shares)
    low, high = interval(merged)
    return {
        "recall": float(merged.mean()),
        "recall_low": low,
        "recall_high": high,
        "recall_rows": len(merged),
    }
