"""Selectors by gradients or embeddings: how close a row is to the target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from g2is_ray.features.vectors import normalize
from g2is_ray.selector.interface import Choice, Pool, Selector, Target, best_first, round_robin
from g2is_ray.selector.knowledge import core_knowledge


class Less(Selector):
    """Cosine to the target's rows: mean within a subtask, maximum over subtasks.

    Source: LESS (arXiv 2402.04333), section 4.2.
    """

    step = "influence"

    def directions(self, target: Target) -> NDArray[np.floating]:
        return target.subtask_means()  # a mean of products is the product with the mean

    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        return best_first(products.max(axis=0), pool.free)


class LessRoundRobin(Selector):
    """Each target row in turn takes the row with the largest cosine to it that is left."""

    step = "turn"

    def directions(self, target: Target) -> NDArray[np.floating]:
        return target.features

    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        return round_robin(products, pool.free)


class Rds(LessRoundRobin):
    """Each target row in turn takes the row with the closest embedding that is left.

    Source: RDS+ (arXiv 2503.01807), section 3.
    """

    reads = frozenset({"embeddings"})


class Gist(Selector):
    """Cosine to the target within the subspace of its gradients, each direction counted alike.

    The subspace is that of the leading uncentered principal components. Coordinates in it are
    divided by the target's own spread (whitened). As in `Less`, the cosine is to the mean of a
    subtask, and the largest over subtasks counts.

    Source: after GIST (arXiv 2602.18584); how many components, and whitening, are our choice.
    """

    step = "influence"
    explained_variance: ClassVar[float] = 0.9
    """Share of the target's squared length that the subspace keeps."""

    def directions(self, target: Target) -> NDArray[np.floating]:
        known = core_knowledge(
            target.features, explained_variance=self.explained_variance, pca="uncentered"
        )
        return known.components / np.sqrt(known.explained_variance_ratio)[:, None]

    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        aims = normalize(target.subtask_means() @ self.directions(target).T)  # [s, k]
        lengths = np.sqrt(np.einsum("kn,kn->n", products, products))
        along = (aims.astype(np.float32) @ products).max(axis=0)
        cosines = np.divide(along, lengths, out=np.zeros_like(along), where=lengths > 0)
        return best_first(cosines, pool.free)
