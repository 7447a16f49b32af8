"""The kNN graph is the exact one, part by part too, and says no to what it cannot be."""

import importlib.metadata

import numpy as np
import pytest

from g2is_ray.arrays import mean_of_valid, normalize
from g2is_ray.errors import SettingError, WorkspaceError
from g2is_ray.features import GradientSet, gradient_files
from g2is_ray.graph import GraphWriter, check_neighbors, knn_graph, read_neighbors, require_faiss
from g2is_ray.workspace import Workspace

RNG = np.random.default_rng(0)
RAW = RNG.standard_normal((50, 16)).astype(np.float32) + 0.7
RAW[[4, 20]] = 0  # examples without a usable gradient
X = normalize(RAW)
PARTS = [slice(0, 18), slice(18, 36), slice(36, 50)]


def brute_force(x, k):
    """Neighbors by all dot products, without FAISS; -1 where there are too few."""
    valid = x.any(axis=1)
    similarity = x.astype(np.float64) @ x.T.astype(np.float64)
    similarity[:, ~valid] = -np.inf
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    order[np.take_along_axis(similarity, order, axis=1) == -np.inf] = -1
    order[~valid] = -1
    return order


@pytest.mark.parametrize("k", [1, 5, 47, 49])
def test_neighbors_are_those_of_all_dot_products_in_order(k):
    np.testing.assert_array_equal(knn_graph(X, k), brute_force(X, k))


def test_row_numbers_are_int32():
    assert knn_graph(X, 3).dtype == np.int32


def test_no_row_is_its_own_neighbor_among_equal_rows():
    x = np.tile(X[:1], (12, 1))
    graph = knn_graph(x, 4)
    assert (graph != np.arange(12)[:, None]).all()
    assert (graph >= 0).all()
    assert all(len(set(row)) == 4 for row in graph.tolist())


@pytest.mark.parametrize("k", [50, 51, 10**12])
def test_k_must_be_below_the_rows(k):
    with pytest.raises(SettingError, match=rf"number of rows, 50, got {k}$"):
        knn_graph(X, k)
    check_neighbors(49, 50)


@pytest.mark.parametrize("other", ["faiss-gpu", "faiss-gpu-cu12"])
def test_two_faiss_packages_are_refused(other, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distribution", _installed("faiss-cpu", other))
    with pytest.raises(SettingError, match=f"^faiss-cpu and {other} are both installed"):
        require_faiss()


def test_one_faiss_package_is_imported_whichever_it_is(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distribution", _installed("faiss-gpu"))
    assert hasattr(require_faiss(), "IndexFlatIP")


def test_a_missing_faiss_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(SettingError, match=r"install g2is-ray\[cpu\], or g2is-ray\[gpu\]"):
        require_faiss()


def _installed(*names):
    def distribution(name):
        if name not in names:
            raise importlib.metadata.PackageNotFoundError(name)

    return distribution


@pytest.fixture
def workspace(tmp_path):
    """A workspace with the gradients of `RAW` in three parts."""
    made = Workspace(str(tmp_path))
    for part, rows in enumerate(PARTS):
        made.commit("gradients", f"part-{part:05d}", gradient_files(part, RAW[rows]), {})
    made.commit("gradients", "receipt", {}, {"rows": 50, "parts": 3, "invalid": 2})
    return made


@pytest.mark.parametrize("center", [False, True])
def test_gradients_are_read_as_the_unit_rows_they_were(center, workspace):
    wanted = normalize(RAW, mean_of_valid(RAW) if center else None)
    found = GradientSet(workspace, "gradients", center=center)
    assert (found.rows, found.parts) == (50, 3)
    np.testing.assert_allclose(found.read_all(), wanted, atol=2e-3)  # stored as float16
    assert not found.read_all()[[4, 20]].any()


@pytest.mark.parametrize("center", [False, True])
def test_a_graph_in_parts_is_that_of_the_whole(center, workspace):
    writer = GraphWriter(workspace, "graph/x", neighbors=6, center=center)
    for part in (2, 0, 1):  # in any order
        writer.write(part)
    workspace.commit("graph/x", "receipt", {}, {"parts": 3})
    whole = GradientSet(workspace, "gradients", center=center).read_all()
    np.testing.assert_array_equal(read_neighbors(workspace, "graph/x"), knn_graph(whole, 6))


def test_stored_similarities_are_the_cosines_of_the_stored_neighbors(workspace):
    writer = GraphWriter(workspace, "graph/x", neighbors=6, center=True)
    x = GradientSet(workspace, "gradients", center=True).read_all()
    for part, rows in enumerate(PARTS):
        receipt = writer.write(part)
        near = workspace.read_array(f"graph/x/part-{part:05d}.neighbors.npy")
        found = workspace.read_array(f"graph/x/part-{part:05d}.similarities.npy")
        assert (near.dtype, found.dtype) == (np.int32, np.float32)
        wanted = np.einsum("nd,nkd->nk", x[rows], x[near])
        np.testing.assert_allclose(found[near >= 0], wanted[near >= 0], atol=1e-5)
        assert receipt["rows"] == len(near)
        assert receipt["edges"] == int((near >= 0).sum())


def test_centering_takes_the_common_direction_out(workspace):
    plain = GradientSet(workspace, "gradients").read_all()
    centered = GradientSet(workspace, "gradients", center=True).read_all()
    assert (plain @ plain.T).mean() > 0.2
    assert abs((centered @ centered.T).mean()) < 0.05


def test_an_unfinished_graph_is_not_read(workspace):
    GraphWriter(workspace, "graph/x", neighbors=6, center=True).write(0)
    with pytest.raises(WorkspaceError, match="no finished graph/x yet; run `g2is graph "):
        read_neighbors(workspace, "graph/x")


def test_a_truncated_part_is_named(workspace):
    data = workspace.read_bytes("gradients/part-00001.npy")
    workspace.write_bytes("gradients/part-00001.npy", data[:-1])
    with pytest.raises(WorkspaceError, match=r"gradients/part-00001\.npy is damaged"):
        GradientSet(workspace, "gradients").read_all()
