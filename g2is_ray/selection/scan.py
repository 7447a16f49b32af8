"""The one pass over a pool: dot products of all rows with the directions of all selectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from g2is_ray.errors import InputError
from g2is_ray.features.rows import Rows

Directions = Sequence[NDArray[np.floating]]


def products_of(
    x_bd: NDArray[np.float32], directions: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    """Dot products [k, b] of rows [b, d] with each set of directions [k, d].

    The products with one set are the same to the last digit whatever the other sets are.
    """
    return [(x_bd @ each_kd.T).T for each_kd in directions]


def scan(rows: Rows, directions: Directions) -> tuple[list[NDArray[np.float32]], NDArray[np.bool_]]:
    """Multiply all rows of a pool with sets of directions [k, d], block by block.

    Returns:
        For each set the dot products [k, n]; and which rows [n] are valid, that is, not zero.

    Raises:
        InputError: directions and rows differ in their dimensions.
    """
    for each in directions:
        check_dimensions(rows.dimensions, each)
    sets = [np.asarray(each, dtype=np.float32) for each in directions]
    products = [np.empty((len(each), len(rows)), dtype=np.float32) for each in sets]
    valid = np.empty(len(rows), dtype=bool)
    for first, block in rows.blocks():
        here = slice(first, first + len(block))
        for whole, part in zip(products, products_of(block, sets), strict=True):
            whole[:, here] = part
        valid[here] = np.any(block, axis=1)
    return products, valid


def check_dimensions(dimensions: int, target: NDArray[np.floating]) -> None:
    """Refuse target rows [m, d] whose dimensions differ from the pool's.

    Raises:
        InputError: dimensions differ.
    """
    if dimensions != target.shape[1]:
        raise InputError(
            f"pool gradients have {dimensions} dimensions, but target gradients {target.shape[1]}"
        )
