"""A walk over given components, as tests of its rules need it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from g2is_ray.config import WalkSettings
from g2is_ray.features.rows import Rows
from g2is_ray.selection.scan import scan
from g2is_ray.selector.interface import Neighbors
from g2is_ray.selector.picks import Pick
from g2is_ray.selector.walk import Walk


def walk(
    x: Rows,
    neighbors: Neighbors,
    components: np.ndarray,
    budgets: Sequence[int],
    *,
    first_looked_at: int | None = None,
    **rules: Any,
) -> Iterator[Pick]:
    """Picks for each of the components [c, d], unit rows, in turn; rules are `WalkSettings`.

    Args:
        first_looked_at: candidates and members that the walk begins with.
    """
    [products], valid = scan(x, [components])
    limits = {"first_block": first_looked_at, "first_members": first_looked_at}
    given = limits if first_looked_at else {}
    walked = Walk(x, neighbors, products, valid, WalkSettings(**rules), **given)
    for index, budget in enumerate(budgets):
        yield from walked.component(index, budget)
