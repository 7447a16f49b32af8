"""Gradient arrays: reading those that somebody already has, centering, normalizing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2is_ray.errors import InputError, one_line


def load_matrix(path: str) -> NDArray[np.generic]:
    """Read a 2-D array from `.npy`, `.safetensors` or `.pt`, never running code from it.

    A `.safetensors` or `.pt` file must hold one tensor, alone or as the only entry.

    Raises:
        InputError: the file is missing, of another kind, damaged, or not one matrix.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file")
    reader = _READERS.get(file.suffix)
    if reader is None:
        raise InputError(
            f"{path}: arrays are read from {', '.join(_READERS)}, not from {file.suffix!r}"
        )
    try:
        array = reader(file)
    except InputError:
        raise
    except Exception as error:  # numpy, safetensors and torch raise many kinds for bad files
        raise InputError(f"{path}: cannot be read as an array: {one_line(error)}") from None
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{path}: needs rows and columns, but has shape {list(array.shape)}")
    return array


def _read_npy(file: Path) -> NDArray[np.generic]:
    with file.open("rb") as stream:
        if stream.read(6) != b"\x93NUMPY":  # np.load would try archives and pickles too
            raise ValueError("it is empty or not of NumPy's .npy format")
    return np.load(file, allow_pickle=False, mmap_mode="r")


def _read_safetensors(file: Path) -> NDArray[np.generic]:
    from safetensors.torch import load_file

    return _as_numpy(_only(load_file(file), file))  # by torch, as NumPy lacks bfloat16


def _read_pt(file: Path) -> NDArray[np.generic]:
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):
            held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # of many kinds; their advice is to load it unsafely
        raise InputError(
            f"{file}: is damaged, or cannot be loaded without running code from it; save one "
            "tensor by itself"
        ) from None
    return _as_numpy(_only(held, file) if isinstance(held, dict) else held)


def _only(entries: Mapping[str, Any], file: Path) -> Any:
    if len(entries) != 1:
        raise InputError(f"{file}: needs exactly one tensor, but holds {sorted(map(str, entries))}")
    return next(iter(entries.values()))


def _as_numpy(value: object) -> NDArray[np.generic]:
    import torch

    if not isinstance(value, torch.Tensor):
        raise ValueError(f"it holds a {type(value).__name__}, not a tensor")
    if value.is_floating_point() and value.dtype not in (torch.float32, torch.float64):
        value = value.float()  # NumPy lacks bfloat16 and float8
    return value.numpy(force=True)


_READERS = {".npy": _read_npy, ".safetensors": _read_safetensors, ".pt": _read_pt}


def gradients_from(path: str) -> NDArray[np.float32]:
    """Read a matrix of finite real numbers as float32 [n, d].

    Raises:
        InputError: as `load_matrix`; or entries that are not finite real numbers.
    """
    array = load_matrix(path)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path}: needs real numbers, but holds {array.dtype}")
    with np.errstate(over="ignore"):
        gradients = np.asarray(array, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(gradients).all(axis=1))
    if len(bad):
        raise InputError(f"{path}: row {bad[0]} has entries that are not finite numbers")
    return gradients


def neighbors_from(path: str, rows: int) -> NDArray[np.int64]:
    """Read a graph [n, k] of neighbor rows; negative entries mean no neighbor.

    Raises:
        InputError: as `load_matrix`; or not one row of whole numbers below `rows` per row.
    """
    array = load_matrix(path)
    if array.dtype.kind not in "iu":
        raise InputError(f"{path}: needs row numbers, but holds {array.dtype}")
    if len(array) != rows:
        raise InputError(f"{path}: has {len(array)} rows, but --train has {rows}")
    largest = int(array.max())
    if largest >= rows:
        raise InputError(f"{path}: names row {largest}, but --train has only {rows} rows")
    return np.asarray(array, dtype=np.int64)


def normalize(
    x: NDArray[np.floating], mean: NDArray[np.floating] | None = None
) -> NDArray[np.float32]:
    """Unit rows of `x - mean` [n, d]; rows of zeros in `x` stay zero, with a mean too."""
    valid = np.any(x != 0, axis=1)
    centered = np.asarray(x, dtype=np.float32)
    if mean is not None:
        centered = centered - mean.astype(np.float32)
    # In float64, because squares of very large or small float32 numbers leave its range.
    norms = np.sqrt(np.einsum("nd,nd->n", centered, centered, dtype=np.float64))
    valid &= norms > 0
    norms[~valid] = np.inf
    out = None if mean is None else centered  # which is then nobody else's
    return np.divide(centered, norms[:, None], out=out, dtype=np.float32, casting="same_kind")


def mean_of_valid(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean [d] of the rows of `x` [n, d] that are not all zero."""
    valid = np.any(x != 0, axis=1)
    return x[valid].mean(axis=0, dtype=np.float64) if valid.any() else np.zeros(x.shape[1])
