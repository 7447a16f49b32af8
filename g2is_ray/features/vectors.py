"""Arithmetic on feature rows: unit length, and the mean of the valid ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def normalize(
    x: NDArray[np.floating], mean: NDArray[np.floating] | None = None
) -> NDArray[np.float32]:
    """Return the rows of `x - mean` [n, d] at unit length, as float32.

    A row of zeros in `x` is invalid and stays zero, with a mean too; so does a row that equals
    the mean.

    Args:
        x: rows [n, d]; unchanged afterwards.
        mean: [d], subtracted from every valid row; None subtracts nothing.
    """
    valid = np.any(x != 0, axis=1)
    centered = np.asarray(x, dtype=np.float32)
    if mean is not None:
        centered = centered - mean.astype(np.float32)
    # In float64, because squares of very large or small float32 numbers leave its range.
    norms = np.sqrt(np.einsum("nd,nd->n", centered, centered, dtype=np.float64))
    valid &= norms > 0
    norms[~valid] = np.inf
    out = None if mean is None else centered  # a new array, so it is overwritten in place
    return np.divide(centered, norms[:, None], out=out, dtype=np.float32, casting="same_kind")


def mean_of_valid(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean [d], float64, of the rows of `x` [n, d] that are not all zero."""
    valid = np.any(x != 0, axis=1)
    return x[valid].mean(axis=0, dtype=np.float64) if valid.any() else np.zeros(x.shape[1])
