"""Reads and checks the array files that a user already has: gradients and kNN graphs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2is_ray.errors import InputError


def load_matrix(path: str) -> NDArray[np.generic]:
    """Read a 2-D array [n, d] from `.npy`, `.safetensors` or `.pt`, running no code from it.

    A `.safetensors` or `.pt` file must hold one tensor, alone or as the only entry.

    Raises:
        InputError: the file is missing, damaged, of an unknown kind, or does not hold one matrix.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file")
    reader = _READERS.get(file.suffix)
    if reader is None:
        raise InputError(
            f"{path}: cannot read arrays from {file.suffix!r}; give {', '.join(_READERS)}"
        )
    try:
        array = reader(file)
    except InputError:
        raise
    except Exception as error:  # numpy, safetensors and torch raise many kinds for bad files
        raise InputError(f"{path}: cannot be read as an array: {_first_line(error)}") from None
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{path}: needs rows and columns, but has shape {list(array.shape)}")
    return array


def _read_npy(file: Path) -> NDArray[np.generic]:
    with file.open("rb") as stream:
        if stream.read(6) != b"\x93NUMPY":  # np.load would try archives and pickles too
            raise ValueError("it is empty or not in NumPy's .npy format")
    return np.load(file, allow_pickle=False, mmap_mode="r")


def _read_safetensors(file: Path) -> NDArray[np.generic]:
    from safetensors.torch import load_file

    return _as_numpy(_only_entry(load_file(file), file))  # torch has bfloat16, NumPy does not


def _read_pt(file: Path) -> NDArray[np.generic]:
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds and advises to load the file unsafely
        raise InputError(
            f"{file}: cannot be loaded: it is damaged or needs code from the file to run; save a "
            "single tensor"
        ) from None
    return _as_numpy(_only_entry(loaded, file) if isinstance(loaded, dict) else loaded)


def _only_entry(entries: Mapping[str, Any], file: Path) -> Any:
    if len(entries) != 1:
        raise InputError(f"{file}: needs exactly one tensor, but holds {sorted(map(str, entries))}")
    return next(iter(entries.values()))


def _as_numpy(value: object) -> NDArray[np.generic]:
    import torch

    if not isinstance(value, torch.Tensor):
        raise ValueError(f"it holds a {type(value).__name__}, not a tensor")
    if value.is_floating_point() and value.dtype not in (torch.float32, torch.float64):
        value = value.float()  # NumPy has neither bfloat16 nor float8
    return value.numpy(force=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


_READERS = {".npy": _read_npy, ".safetensors": _read_safetensors, ".pt": _read_pt}


def gradients_from(path: str) -> NDArray[np.float32]:
    """Read a matrix of finite real numbers as float32 [n, d].

    Raises:
        InputError: see `load_matrix`; or an entry is not a finite real number.
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
    """Read a kNN graph as neighbor rows, int64 [rows, k]; negative entries mean no neighbor.

    Raises:
        InputError: see `load_matrix`; or the array does not have `rows` rows of integers below
            `rows`.
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
