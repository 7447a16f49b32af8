"""How well random projections keep the inner products and neighbors of real gradients.

    python benchmarks/projection.py --workspace runs/first --save runs/gradients.npy

Takes unprojected gradients g of rows of the workspace's pool at its warmed-up adapter, and
from them the momentum-adjusted ones, Γ, with AdamW's moments after the warm-up. Projects
both, sparsely and densely, with the same seeds; compares the projected rows with the
unprojected ones, as they are and with their mean subtracted. The unprojected gradients are
kept in the file given with --save, and a second run goes on from there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from workload import warmed_model, workspace_rows

from g2is_ray.chat.encoder import Encoded
from g2is_ray.features.gradients import GradientComputer, adjust_gradient, prepare_moments
from g2is_ray.features.projection import (
    Projection,
    RademacherProjection,
    SparseProjection,
    Unprojected,
)
from g2is_ray.features.vectors import normalize
from g2is_ray.models import loading
from g2is_ray.models.loading import Moments
from g2is_ray.workspace.workspace import Workspace

KINDS = {"sparse": SparseProjection, "rademacher": RademacherProjection}
CHUNK = 16  # rows computed between two writes to the file


def plain_gradients(
    model: Any, whole: Unprojected, rows: Sequence[Encoded], token_budget: int, file: Path
) -> np.ndarray:
    """Unprojected gradients [n, p] of `rows`; those already in `file` are not computed again."""
    computer = GradientComputer(model, whole, None, pad_id=0, token_budget=token_budget)
    shape = (len(rows), whole.dimensions)
    if file.exists():
        kept = np.lib.format.open_memmap(file, "r+")
        if kept.shape != shape:
            raise SystemExit(f"{file} holds {kept.shape} numbers, not {shape}; remove it")
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = np.lib.format.open_memmap(file, "w+", np.float32, shape)
    for start in range(0, len(rows), CHUNK):
        if not kept[start : start + CHUNK].any(axis=1).all():
            chunk = rows[start : start + CHUNK]
            kept[start : start + CHUNK] = computer.compute(chunk, adjust=False).projected
    return np.array(kept)


def adjusted_rows(plain: np.ndarray, whole: Unprojected, moments: Moments) -> np.ndarray:
    """Γ of the rows g [n, p]."""
    found = np.empty_like(plain)
    for name, pair in prepare_moments(moments, torch.device("cpu")).items():
        m, v = (moment.flatten() for moment in pair)
        g = torch.from_numpy(plain[:, whole.slices[name]])
        found[:, whole.slices[name]] = adjust_gradient(g, (m, v)).numpy()
    return found


def predicted_spread(unit: np.ndarray, dimensions: int) -> float:
    """Standard deviation over seeds that theory gives for inner products of `unit` rows [n, p].

    Root of the mean over pairs of (|a|²|b|² + <a, b>² - 2 Σ a_i² b_i²) / dimensions.
    """
    squares = np.square(unit)
    variance = (1 + np.square(unit @ unit.T) - 2 * squares @ squares.T) / dimensions
    return float(np.sqrt(off_diagonal(variance).mean()))


def off_diagonal(square: np.ndarray) -> np.ndarray:
    return square[np.triu_indices(len(square), 1)]


def nearest(cosines: np.ndarray, count: int) -> np.ndarray:
    """Each row's `count` nearest other rows, [n, count], in no order."""
    others = cosines.copy()
    np.fill_diagonal(others, -np.inf)
    return np.argpartition(-others, count - 1, axis=1)[:, :count]


def overlap(cosines: np.ndarray, others: np.ndarray, count: int) -> float:
    """Share of each row's `count` nearest that both have, on average."""
    pairs = zip(nearest(cosines, count), nearest(others, count), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / count for a, b in pairs]))


def project(projection: Projection, whole: Unprojected, rows: np.ndarray) -> np.ndarray:
    """Projections [n, d] of unprojected rows [n, p]."""
    out_bd = torch.zeros(len(rows), projection.dimensions)
    for name, columns in whole.slices.items():
        projection.add(out_bd, name, torch.from_numpy(rows[:, columns]))
    return out_bd.numpy()


def errors(
    exact: np.ndarray, norms: np.ndarray, projected: np.ndarray, neighbors: int
) -> tuple[float, float, float, float]:
    """What a projection does to the cosines `exact` [n, n] of rows with these norms [n].

    Returns:
        Standard deviation over pairs of the inner products' errors, unit rows projected;
        of the cosines' errors; the largest of those; the overlap of nearest neighbors.
    """
    unscaled = projected / norms[:, None]
    unit = normalize(projected)
    cosines = unit @ unit.T
    inner_error = off_diagonal(unscaled @ unscaled.T - exact)
    cosine_error = off_diagonal(cosines - exact)
    return (
        float(inner_error.std()),
        float(cosine_error.std()),
        float(np.abs(cosine_error).max()),
        overlap(exact, cosines, neighbors),
    )


def seconds_per_row(projection: Projection, whole: Unprojected, rows: np.ndarray) -> float:
    project(projection, whole, rows)  # builds tables
    found = []
    for _ in range(3):
        began = time.perf_counter()
        project(projection, whole, rows)
        found.append(time.perf_counter() - began)
    return min(found) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workspace", required=True, help="one whose warm-up is done")
    parser.add_argument("--save", required=True, type=Path, help="file for unprojected gradients")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--token-budget", type=int, default=1024)
    parser.add_argument("--dimensions", type=int, default=8192)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--neighbors", type=int, default=32)
    given = parser.parse_args()

    workspace = Workspace(given.workspace)
    rows = workspace_rows(workspace, given.rows)
    model, moments = warmed_model(workspace)
    whole = Unprojected({name: p.numel() for name, p in loading.lora_parameters(model).items()})
    plain = plain_gradients(model, whole, rows, given.token_budget, given.save)
    print(f"{len(plain)} rows of {whole.dimensions:,} numbers, {given.dimensions} dimensions")

    print("| gradients | projection | inner products: sd of error (theory) ", end="")
    print("| cosines: sd of error | largest | ", end="")
    print(f"top-{given.neighbors} overlap |")
    print("| --- | --- | --- | --- | --- | --- |")
    for label, gradients in (("g", plain), ("Γ", adjusted_rows(plain, whole, moments))):
        projected = {
            kind: [
                project(make(given.dimensions, seed), whole, gradients)
                for seed in range(given.seeds)
            ]
            for kind, make in KINDS.items()
        }
        for center in (False, True):
            compare(label, gradients, projected, center, given.neighbors)

    for kind, make in KINDS.items():
        each = seconds_per_row(make(given.dimensions, 0), whole, plain[:8])
        print(f"{kind}: {1000 * each:.1f} ms a row in batches of 8")


def compare(
    label: str,
    gradients: np.ndarray,
    projected: Mapping[str, Sequence[np.ndarray]],
    center: bool,
    neighbors: int,
) -> None:
    """Print one line per projection of `gradients` [n, p] ([n, d] per seed), and their ratio."""
    if center:  # projections are linear: the projected mean is the mean of the projected
        gradients = gradients - gradients.mean(axis=0)
        label += ", centered"
    norms = np.linalg.norm(gradients, axis=1)
    unit = gradients / norms[:, None]
    exact = unit @ unit.T
    spreads = {}
    for kind, per_seed in projected.items():
        found = [
            errors(exact, norms, rows - rows.mean(axis=0) if center else rows, neighbors)
            for rows in per_seed
        ]
        inner, cosine, _, kept = np.mean(found, axis=0)
        largest = max(one[2] for one in found)
        spreads[kind] = np.array([inner, cosine])
        theory = predicted_spread(unit, per_seed[0].shape[1])
        print(
            f"| {label} | {kind} | {inner:.5f} ({theory:.5f}) | {cosine:.5f} | {largest:.4f} "
            f"| {kept:.3f} |"
        )
    ratio = spreads["sparse"] / spreads["rademacher"]
    print(f"| {label} | sparse / rademacher | {ratio[0]:.3f} | {ratio[1]:.3f} | | |", flush=True)


if __name__ == "__main__":
    main()
