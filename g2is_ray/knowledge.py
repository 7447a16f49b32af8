"""Core knowledge: principal components of the target's gradients, and their budgets.

Source: G2IS (arXiv 2502.11062), section 3; the settings `pca` and `orient` go beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.utils.extmath import svd_flip

from g2is_ray.errors import InputError

_NO_VARIANCE = 1e-12  # share of the variance below which a component is rounding noise


@dataclass(frozen=True, kw_only=True)
class CoreKnowledge:
    """Components of a target, in descending order of explained variance."""

    components: NDArray[np.float64]  # [c, d], unit rows
    explained_variance_ratio: NDArray[np.float64]  # [c], of the target's whole variance

    @property
    def weights(self) -> NDArray[np.float64]:
        """[c], explained variance ratios normalized to sum 1."""
        return self.explained_variance_ratio / self.explained_variance_ratio.sum()


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
        model = PCA(svd_solver="full").fit(target)
        components, ratios = model.components_, model.explained_variance_ratio_
    else:
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
    return CoreKnowledge(components=components, explained_variance_ratio=ratios[:count])


def split_budget(budget: int, weights: NDArray[np.float64]) -> list[int]:
    """Split `budget` over weights that sum to 1, by the largest remainder method.

    Ties go to the earlier weight. The parts sum to `budget`.
    """
    quotas = budget * np.asarray(weights, dtype=np.float64)
    parts = np.floor(quotas).astype(int)
    order = np.argsort(-(quotas - parts), kind="stable")
    parts[order[: budget - parts.sum()]] += 1
    return [int(part) for part in parts]
