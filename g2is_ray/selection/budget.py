"""Budgets: how much may be selected, in rows or in supervised tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from g2is_ray.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """An amount to spend on rows, and what a row costs."""

    amount: int
    tokens: NDArray[np.integer] | None = None  # [n], what each row costs; None: each costs 1

    @property
    def unit(self) -> str:
        return "rows" if self.tokens is None else "supervised tokens"

    def cost(self, row: int) -> int:
        return 1 if self.tokens is None else int(self.tokens[row])


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
    """A budget of supervised tokens, of which the rows have `tokens` [n].

    Raises:
        SettingError: there is a row that exceeds it, so that nothing might be selected.
    """
    longest = int(tokens.max())
    if amount < longest:
        raise SettingError(
            f"budget_tokens {amount} is less than the {longest} supervised tokens of the pool's "
            "longest row; raise it, or lower max_tokens"
        )
    return Budget(amount=amount, tokens=tokens)
