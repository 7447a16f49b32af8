"""Random projections of gradients to a few thousand dimensions that keep inner products.

Sparse (CountSketch; Charikar, Chen and Farach-Colton 2002, used on features by Weinberger
et al. 2009): each coordinate is added, with a random sign, to one random dimension. Dense
(Rademacher): each coordinate is added to every dimension, with random signs. Both keep
<a, b> on average, and the variance over seeds is the same for both,

    (|a|²|b|² + <a, b>² - 2 Σ a_i² b_i²) / dimensions,

at one operation per coordinate for the sparse projection and `dimensions` for the dense one.

Both derive their random numbers from seed and parameter name in integer arithmetic, so a row is
the same on every host and device, in any batch and in any order of modules, up to the rounding of
sums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Literal, Protocol

import numpy as np
import torch


class Projection(Protocol):
    """Sums the projections of an example's gradients, parameter by parameter."""

    dimensions: int

    def add(self, out_bd: torch.Tensor, name: str, gradient: torch.Tensor) -> None:
        """Add the projected gradients of one parameter to `out_bd`.

        Args:
            out_bd: float32 [b, dimensions], changed in place.
            name: name of the parameter.
            gradient: float32 [b, …], one gradient per example.
        """


def make_projection(
    kind: Literal["sparse", "rademacher", "none"],
    dimensions: int,
    seed: int,
    sizes: Mapping[str, int],
) -> Projection:
    """Return the projection of that kind.

    Args:
        kind: `sparse`, `rademacher` (dense), or `none` to keep every coordinate.
        dimensions: of a projected gradient; ignored by `none`.
        seed: of the random signs; ignored by `none`.
        sizes: number of coordinates by parameter name; only `none` reads it.
    """
    if kind == "none":
        return Unprojected(sizes)
    if kind == "rademacher":
        return RademacherProjection(dimensions, seed)
    return SparseProjection(dimensions, seed)


def _digest(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()


class SparseProjection:
    """Adds each coordinate, with a random sign, to one random dimension.

    Random numbers come from Philox, whose raw stream is stable across releases of NumPy. Memory is
    5 bytes per coordinate of the adapter.
    """

    def __init__(self, dimensions: int, seed: int) -> None:
        self.dimensions = dimensions
        self._seed = seed
        self._tables: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, out_bd: torch.Tensor, name: str, gradient: torch.Tensor) -> None:
        """See `Projection.add`."""
        flat = gradient.reshape(len(gradient), -1)
        buckets, signs = self.table(name, flat.shape[1], flat.device)
        # On a CPU, int64 indices are 5 to 17 times as fast as int32, conversion included.
        out_bd.index_add_(1, buckets.long(), flat * signs)

    def table(
        self, name: str, size: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return dimension (int32) and sign (int8) of each coordinate of a parameter [size]."""
        if name not in self._tables:
            key = int.from_bytes(_digest(self._seed, name)[:16], "little")
            bits = np.random.Philox(key=key).random_raw(size)
            buckets = torch.from_numpy(((bits >> 1) % self.dimensions).astype(np.int32))
            signs = torch.from_numpy(((bits & 1) * 2).astype(np.int8) - 1)
            self._tables[name] = buckets.to(device), signs.to(device)
        return self._tables[name]


class RademacherProjection:
    """Adds each coordinate, with random signs over sqrt(dimensions), to every dimension.

    Signs are generated on the gradient's device each time, in blocks of coordinates, and
    discarded. With w = ceil(dimensions / 64), the signs of coordinate i are the bits of the outputs
    i·w to i·w + w - 1 of SplitMix64, lowest bit first. Generating them takes the same time for one
    example as for a batch.

    Args:
        dimensions: of a projected gradient.
        seed: of the random signs.
        block_bytes: memory for generating a block, which holds at least one coordinate; 0 means
            8 MiB on a CPU, where a block stays in the cache, and 128 MiB elsewhere.
    """

    def __init__(self, dimensions: int, seed: int, *, block_bytes: int = 0) -> None:
        self.dimensions = dimensions
        self._seed = seed
        self._block_bytes = block_bytes
        self._words = -(-dimensions // 64)

    def add(self, out_bd: torch.Tensor, name: str, gradient: torch.Tensor) -> None:
        """See `Projection.add`."""
        flat = gradient.reshape(len(gradient), -1)
        key = int.from_bytes(_digest(self._seed, name)[:8], "little")
        block = self._block_coordinates(flat.device)
        for start in range(0, flat.shape[1], block):
            stop = min(start + block, flat.shape[1])
            out_bd.addmm_(  # a name for the signs would keep two blocks in memory
                flat[:, start:stop],
                self._signs(key, start, stop, flat.device),
                alpha=self.dimensions**-0.5,
            )

    def _block_coordinates(self, device: torch.device) -> int:
        bound = self._block_bytes or (8 if device.type == "cpu" else 128) * 2**20
        # A sign takes 4 bytes, and 2 more while it is generated; the product needs buffers too.
        return max(1, bound // (self._words * 64 * 8))

    def _signs(self, key: int, start: int, stop: int, device: torch.device) -> torch.Tensor:
        """Return signs of the coordinates [start, stop), float32 [stop - start, dimensions]."""
        words = splitmix64(key, start * self._words, stop * self._words, device)
        octets = (words[:, None] >> torch.arange(0, 64, 8, device=device)) & 0xFF
        signs = torch.nn.functional.embedding(octets, _signs_of_octets(device))
        return signs.view(stop - start, -1)[:, : self.dimensions]


def splitmix64(key: int, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """Return the outputs [start, stop) of SplitMix64 from state `key`, int64 [stop - start].

    SplitMix64 multiplies a counter by an odd constant and mixes the bits. Sums and products wrap
    around modulo 2^64 in int64 as in uint64. Source: Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators" (2014).
    """
    z = torch.arange(start + 1, stop + 1, device=device) * _int64(0x9E3779B97F4A7C15)
    z += _int64(key)
    z = (z ^ _shift_right(z, 30)) * _int64(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _int64(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def _shift_right(words: torch.Tensor, by: int) -> torch.Tensor:
    """Shift right as uint64, with zeros from the left; torch shifts in copies of the sign."""
    return (words >> by) & ((1 << (64 - by)) - 1)


def _int64(word: int) -> int:
    """Return the int64 that has the bits of a uint64."""
    return word - (word >> 63 << 64)


@cache
def _signs_of_octets(device: torch.device) -> torch.Tensor:
    """Return the signs for the bits of each byte, lowest bit first, float32 [256, 8]."""
    octets = torch.arange(256, device=device)[:, None]
    bits = (octets >> torch.arange(8, device=device)) & 1
    return bits.float() * 2 - 1


class Unprojected:
    """Keeps every coordinate; parameters are concatenated in order of their names.

    Args:
        sizes: number of coordinates by parameter name.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.slices: dict[str, slice] = {}
        self.dimensions = 0
        for name in sorted(sizes):
            self.slices[name] = slice(self.dimensions, self.dimensions + sizes[name])
            self.dimensions += sizes[name]

    def add(self, out_bd: torch.Tensor, name: str, gradient: torch.Tensor) -> None:
        """See `Projection.add`."""
        out_bd[:, self.slices[name]] += gradient.reshape(len(gradient), -1)
