"""A budget: how much a selector may spend, and how the amount is split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Budget:
    """An amount to spend on rows, and the cost of each row."""

    amount: int
    tokens: NDArray[np.integer] | None = None  # [n], cost of each row; None: each row costs 1

    @property
    def unit(self) -> str:
        return "rows" if self.tokens is None else "supervised tokens"

    def cost(self, row: int) -> int:
        return 1 if self.tokens is None else int(self.tokens[row])


def split_budget(budget: int, weights: NDArray[np.float64]) -> list[int]:
    """Split `budget` over weights that sum to 1, by the largest remainder method.

    Ties go to the earlier weight. The parts sum to `budget`.
    """
    quotas = budget * np.asarray(weights, dtype=np.float64)
    parts = np.floor(quotas).astype(int)
    order = np.argsort(-(quotas - parts), kind="stable")
    parts[order[: budget - parts.sum()]] += 1
    return [int(part) for part in parts]
