"""Core knowledge: principal components of the target's gradients, and their budgets.

Source: G2IS (arXiv 2502.11062), section 3; the settings `pca` and `orient` go beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from g2is_ray.errors import InputError

_NO_VARIANCE = 1e-12  # share of the variance below which a component is rounding noise


@dataclass(frozen=True, kw_only=True)
class CoreKnowledge:
    """Components of one target, or of several together, in descending order of weight."""

    components: NDArray[np.float64]  # [c, d], unit rows
    explained_variance_ratio: NDArray[np.float64]  # [c], of the target's whole variance
    weights: NDArray[np.float64]  # [c], sum 1: shares of the budget
    means: NDArray[np.float64]  # [t, d], mean gradient of each target
    mean_of: NDArray[np.intp]  # [c], which of the means is of the component's target
    targets: tuple[str, ...] = ()  # whose component each is, of several targets together

    @property
    def directions(self) -> NDArray[np.float64]:
        """What rows are compared with for a walk [c + t, d]: components, then means."""
        return np.concatenate([self.components, self.means])


def core_knowledge(
    target: NDArray[np.floating],
    *,
    explained_variance: float,
    pca: Literal["centered", "uncentered"] = "centered",
    orient: bool = False,
) -> CoreKnowledge:
    """Take the leading components of the target gradients.

    Args:
        target: gradients [m, d], one row per target example, used as they are.
        explained_variance: components are taken until they explain this share.
        pca: `centered` is scikit-learn's PCA; `uncentered` keeps the mean gradient in.
        orient: flip each component so that the mean target gradient is on its positive
            side. Otherwise signs follow scikit-learn's convention.

    Raises:
        InputError: too few rows, or all rows alike, so that there is no component.
    """
    target = np.asarray(target, dtype=np.float64)
    least = 2 if pca == "centered" else 1
    if len(target) < least:
        raise InputError(
            f"the target has {len(target)} usable rows, but {pca} components need at least {least}"
        )
    if pca == "centered":
        from sklearn.decomposition import PCA

        model = PCA(svd_solver="full").fit(target)
        components, ratios = model.components_, model.explained_variance_ratio_
    else:
        from sklearn.utils.extmath import svd_flip

        u, scale, components = np.linalg.svd(target, full_matrices=False)
        _, components = svd_flip(u, components, u_based_decision=False)
        ratios = np.square(scale) / max(np.square(scale).sum(), np.finfo(np.float64).tiny)
    ratios = np.nan_to_num(ratios)  # PCA divides zero by zero when all rows are alike
    informative = int((ratios > _NO_VARIANCE).sum())
    if informative == 0:
        raise InputError("the target's gradients are all alike, so they have no component")
    enough = int(np.searchsorted(np.cumsum(ratios), explained_variance)) + 1
    count = min(enough, informative)
    components = components[:count]
    if orient:
        components = components * np.where(components @ target.mean(axis=0) < 0, -1.0, 1.0)[:, None]
    ratios = ratios[:count]
    return CoreKnowledge(
        components=components,
        explained_variance_ratio=ratios,
        weights=ratios / ratios.sum(),
        means=target.mean(axis=0)[None],
        mean_of=np.zeros(count, dtype=np.intp),
    )


def joint_knowledge(
    each: Mapping[str, CoreKnowledge], target_weights: Mapping[str, float]
) -> CoreKnowledge:
    """Components of several targets as one set, for one budget.

    A component's weight is its weight within its target times its target's share of
    `target_weights`. Of equal weights the earlier target's comes first.
    """
    total = sum(target_weights[name] for name in each)
    weights = np.concatenate(
        [known.weights * (target_weights[name] / total) for name, known in each.items()]
    )
    targets = [name for name, known in each.items() for _ in known.components]
    order = np.argsort(-weights, kind="stable")
    ratios = np.concatenate([known.explained_variance_ratio for known in each.values()])
    counts = [len(known.components) for known in each.values()]
    return CoreKnowledge(
        components=np.concatenate([known.components for known in each.values()])[order],
        means=np.concatenate([known.means for known in each.values()]),
        mean_of=np.repeat(np.arange(len(each)), counts)[order],
        explained_variance_ratio=ratios[order],
        weights=weights[order],
        targets=tuple(targets[i] for i in order),
    )


def split_budget(budget: int, weights: NDArray[np.float64]) -> list[int]:
    """Split `budget` over weights that sum to 1, by the largest remainder method.

    Ties go to the earlier weight. The parts sum to `budget`.
    """
    quotas = budget * np.asarray(weights, dtype=np.float64)
    parts = np.floor(quotas).astype(int)
    order = np.argsort(-(quotas - parts), kind="stable")
    parts[order[: budget - parts.sum()]] += 1
    return [int(part) for part in parts]
