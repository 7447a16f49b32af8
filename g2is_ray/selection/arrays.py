"""Select on features and a graph at hand, without a workspace."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from g2is_ray.features.rows import Rows
from g2is_ray.selection.scan import scan
from g2is_ray.selector.budget import Budget
from g2is_ray.selector.interface import Neighbors, Pool, Selector, Target
from g2is_ray.selector.picks import Pieces, Selection


def select_from(
    selector: Selector,
    rows: Rows,
    neighbors: Neighbors,
    target: NDArray[np.floating],
    budget: Budget,
    pieces: Pieces = Pieces(),  # noqa: B008  it is immutable
) -> Selection:
    """Select rows of a pool for a target; all rows that are not zero may be picked.

    Args:
        target: features [m, d] of the target, as one subtask.

    Raises:
        InputError: the dimensions of pool and target differ, or the target has no components.
    """
    wanted = Target(
        features=np.asarray(target, dtype=np.float32), texts=[], subtasks=[""] * len(target)
    )
    products, valid = scan(rows, [selector.directions(wanted)])
    pool = Pool(free=valid, features=rows, neighbors=neighbors)
    return selector.select(pool, [wanted], products, budget, pieces)
