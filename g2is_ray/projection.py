"""Random projection of gradients to a few thousand dimensions.

A sparse sign projection (CountSketch; Charikar, Chen and Farach-Colton 2002): each
coordinate of the gradient is added, with a random sign, to one random dimension. Inner
products keep their expectation, at the cost of one pass over the gradient.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import torch


class Projection(Protocol):
    """Adds gradients, parameter by parameter, to rows of `dimensions` numbers."""

    dimensions: int

    def add(self, out_bd: torch.Tensor, name: str, gradient: torch.Tensor) -> None:
        """Add the projection of parameter `name`'s gradients [b, …] to `out_bd`, in place."""


class SparseProjection:
    """Projects named gradients of any shape into the same `dimensions`.

    Keyed by seed and parameter name through Philox, whose raw stream NumPy keeps stable,
    so the projection is the same on every host and device and in any order of modules.
    Memory is 5 bytes per coordinate of the adapter.
    """

    def __init__(self, dimensions: int, seed: int) -> None:
        self.dimensions = dimensions
        self._seed = seed
        self._tables: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, out_bd: torch.Tensor, name: str, gradient: torch.Tensor) -> None:
        """Add the projection of parameter `name`'s gradients to `out_bd`.

        Args:
            out_bd: float32 [b, dimensions], changed in place.
            name: the parameter's name.
            gradient: float32 [b, …], one gradient per example.
        """
        flat = gradient.reshape(len(gradient), -1)
        buckets, signs = self._table(name, flat.shape[1], flat.device)
        out_bd.index_add_(1, buckets, flat * signs)

    def _table(
        self, name: str, size: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if name not in self._tables:
            key = hashlib.sha256(f"{self._seed}\0{name}".encode()).digest()
            bits = np.random.Philox(key=int.from_bytes(key[:16], "little")).random_raw(size)
            buckets = torch.from_numpy(((bits >> 1) % self.dimensions).astype(np.int32))
            signs = torch.from_numpy(((bits & 1) * 2).astype(np.int8) - 1)
            self._tables[name] = buckets.to(device), signs.to(device)
        return self._tables[name]
