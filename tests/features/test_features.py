"""Features are read from disk as unit rows, centered or not."""

from pathlib import Path

import numpy as np
import pytest

from g2is_ray.features.store import FeatureSet, feature_files
from g2is_ray.workspace.workspace import Workspace, part_name

PARTS = (7, 7, 4)
DIMENSIONS = 96


@pytest.fixture
def raw() -> np.ndarray:
    """Gradients with very different norms around a common mean; two are invalid."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((sum(PARTS), DIMENSIONS)) + 1.5) * rng.uniform(1, 1e4, (18, 1))
    x[[3, 15]] = 0
    return x.astype(np.float32)


@pytest.fixture
def workspace(tmp_path: Path, raw: np.ndarray) -> Workspace:
    held, first = Workspace(str(tmp_path)), 0
    for part, rows in enumerate(PARTS):
        files = feature_files(part, raw[first : first + rows])
        held.stage("gradients").commit(part_name(part), files, {"rows": rows})
        first += rows
    held.stage("gradients").conclude({"rows": len(raw), "parts": len(PARTS), "invalid": 2})
    return held


def unit(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def test_plain_rows_are_unit_rows_within_float16(workspace: Workspace, raw: np.ndarray) -> None:
    found = FeatureSet(workspace, "gradients").read_all()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, unit(raw), atol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.any(raw, axis=1), atol=1e-6)


def test_centering_subtracts_the_mean_of_the_valid_rows(
    workspace: Workspace, raw: np.ndarray
) -> None:
    valid = np.any(raw, axis=1)
    wanted = np.zeros_like(raw)
    wanted[valid] = unit(raw[valid] - raw[valid].mean(axis=0))
    found = FeatureSet(workspace, "gradients", center=True).read_all()
    assert np.einsum("nd,nd->n", found[valid], wanted[valid]).min() > 0.999
    assert not found[~valid].any()


@pytest.mark.parametrize("center", [False, True])
def test_taken_rows_equal_those_of_the_whole_set(workspace: Workspace, center: bool) -> None:
    held = FeatureSet(workspace, "gradients", center=center)
    rows = np.array([17, 0, 7, 6, 13, 14, 7, 3])
    np.testing.assert_array_equal(held.take(rows), held.read_all()[rows])
    assert held.take(rows[:0]).shape == (0, DIMENSIONS)


@pytest.mark.parametrize("center", [False, True])
def test_blocks_cover_all_rows_in_order(
    workspace: Workspace, center: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("g2is_ray.features.store.BLOCK_ROWS", 3)
    held = FeatureSet(workspace, "gradients", center=center)
    firsts, blocks = zip(*held.blocks(), strict=True)
    assert max(map(len, blocks)) == 3
    assert list(firsts) == np.cumsum([0, *map(len, blocks)])[:-1].tolist()
    np.testing.assert_array_equal(np.concatenate(blocks), held.read_all())
    assert (len(held), held.dimensions) == (sum(PARTS), DIMENSIONS)
