"""Budgets of a pool: how much may be selected, in rows or in supervised tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from g2is_ray.errors import SettingError
from g2is_ray.selector.budget import Budget


def row_budget(rows: int, fraction: float) -> Budget:
    """A budget of int(rows x fraction) rows.

    Raises:
        SettingError: that is less than one row.
    """
    amount = int(rows * fraction)
    if amount < 1:
        raise SettingError(
            f"fraction {fraction:g} of {rows} rows is less than one row; raise fraction"
        )
    return Budget(amount=amount)


def token_budget(tokens: NDArray[np.integer], amount: int) -> Budget:
    """A budget of supervised tokens, for rows that have `tokens` [n] each.

    Raises:
        SettingError: one row exceeds the budget, so that nothing might be selected.
    """
    longest = int(tokens.max())
    if amount < longest:
        raise SettingError(
            f"budget_tokens {amount} is less than the {longest} supervised tokens of the pool's "
            "longest row; raise it, or lower max_tokens"
        )
    return Budget(amount=amount, tokens=tokens)
