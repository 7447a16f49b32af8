"""Selectors by words: what needs neither a model nor gradients.

Each target row in turn takes the most similar row of the pool that is left. Going by the largest
similarity to any target row instead would give the budget to the few target rows that are like
many others; and BM25 grows with the length of the target row, so that its scores for two of them
cannot be compared.

The word counts of the whole pool are held, about 1 kB per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from g2is_ray.errors import InputError
from g2is_ray.selector.interface import Choice, Pool, Selector, Target, round_robin


class Tfidf(Selector):
    """Cosine of TF-IDF vectors of the words, with the pool's document frequencies."""

    reads = frozenset({"texts"})
    step = "turn"

    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(dtype=np.float32)
        rows = _fit(vectorizer, pool)  # [n, words]
        scores = (vectorizer.transform(target.texts) @ rows.T).toarray()
        return round_robin(scores, pool.free)


class Bm25(Selector):
    """Okapi BM25 of a row of the pool for a target row, all words of which are the query.

    Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond"
    (2009), with an inverse document frequency that is never negative.
    """

    reads = frozenset({"texts"})
    step = "turn"
    k1: ClassVar[float] = 1.5
    b: ClassVar[float] = 0.75

    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        from sklearn.feature_extraction.text import CountVectorizer

        vectorizer = CountVectorizer(dtype=np.float32)
        rows = _fit(vectorizer, pool)  # [n, words], counts
        lengths = np.asarray(rows.sum(axis=1)).ravel()
        holding = np.bincount(rows.indices, minlength=rows.shape[1])
        rarity = np.log(1 + (len(lengths) - holding + 0.5) / (holding + 0.5))
        damping = self.k1 * (1 - self.b + self.b * lengths / lengths.mean())
        counts, damping = rows.data, np.repeat(damping, np.diff(rows.indptr))
        rows.data = counts * (self.k1 + 1) / (counts + damping) * rarity[rows.indices]
        scores = (vectorizer.transform(target.texts) @ rows.T).toarray()
        return round_robin(scores, pool.free)


def _fit(vectorizer: Any, pool: Pool) -> Any:
    """The sparse matrix [n, words] of the pool.

    Raises:
        InputError: there are no words.
    """
    try:
        return vectorizer.fit_transform(pool.texts())
    except ValueError:
        raise InputError("the pool's texts hold no words, so none are like the target's") from None
