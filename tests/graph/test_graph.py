"""The kNN graph is exact, also when built in parts, and refuses impossible settings."""

import importlib.metadata
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from g2is_ray.config import GraphSettings
from g2is_ray.errors import SettingError, WorkspaceError
from g2is_ray.features.rows import map_neighbors
from g2is_ray.features.store import FeatureSet, feature_files
from g2is_ray.features.vectors import mean_of_valid, normalize
from g2is_ray.graph import plan as graph_plan
from g2is_ray.graph.builder import GraphBuilder, faiss_index
from g2is_ray.graph.plan import (
    GraphTask,
    comparison,
    extend_plan,
    make_plan,
    preparation,
    read_plan,
    write_plan,
)
from g2is_ray.graph.recall import measure_recall
from g2is_ray.graph.search import check_neighbors, knn_graph, require_faiss
from g2is_ray.workspace.workspace import Workspace

RNG = np.random.default_rng(0)
RAW = RNG.standard_normal((50, 16)).astype(np.float32) + 0.7
RAW[[4, 20]] = 0  # examples without a usable gradient
X = normalize(RAW)
PARTS = [slice(0, 18), slice(18, 36), slice(36, 50)]


def brute_force(x, k):
    """Return neighbors by all dot products, without FAISS; -1 if there are too few."""
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
def test_two_faiss_packages_are_refused(other, tmp_path, monkeypatch):
    info = tmp_path / f"{other.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {other}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingError, match=rf"^faiss-\w+ and {other} are both installed.*\[gpu\]"):
        require_faiss()


def test_any_single_faiss_package_is_imported(monkeypatch):
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
        made.stage("gradients").commit(f"part-{part:05d}", feature_files(part, RAW[rows]), {})
    made.stage("gradients").commit("receipt", {}, {"rows": 50, "parts": 3, "invalid": 2})
    return made


@pytest.mark.parametrize("center", [False, True])
def test_gradients_are_read_as_the_unit_rows_that_were_written(center, workspace):
    wanted = normalize(RAW, mean_of_valid(RAW) if center else None)
    found = FeatureSet(workspace, "gradients", center=center)
    assert (found.rows, found.parts) == (50, 3)
    np.testing.assert_allclose(found.read_all(), wanted, atol=2e-3)  # stored as float16
    assert not found.read_all()[[4, 20]].any()


def whole_graph(workspace, stage):
    return np.concatenate(map_neighbors(workspace, stage).arrays)


def build(workspace, stage="graph/x", memory_bytes=2**30, shuffle=False, workers=1, **settings):
    """Do every piece of a graph with one builder or several in turns; return the plan."""
    settings = GraphSettings(**{"neighbors": 6, **settings})
    gradients = FeatureSet(workspace, "gradients", center=settings.center, of_graph=True)
    plan = make_plan(gradients, settings, memory_bytes, "cpu")
    write_plan(workspace, stage, plan, gradients)
    return finish(workspace, stage, settings, plan, gradients, shuffle=shuffle, workers=workers)


def finish(workspace, stage, settings, plan, gradients, shuffle=False, workers=1):
    """Do the missing pieces of a graph; return its plan."""
    builders = [GraphBuilder(workspace, stage, settings) for _ in range(workers)]
    for tasks in chain(preparation(plan, gradients.parts), comparison(plan, gradients.parts)):
        left = [task for task in tasks if not workspace.stage(stage).verified(task.piece)]
        for i, task in enumerate(left[::-1] if shuffle else left):
            builders[i % workers].do(task)
    workspace.stage(stage).conclude({"parts": gradients.parts})
    return plan


def arrays(workspace, stage="graph/x"):
    parts = range(workspace.stage(stage).require()["parts"])
    kinds = ("neighbors", "similarities")
    files = [f"{stage}/part-{part:05d}.{kind}.npy" for part in parts for kind in kinds]
    return [workspace.storage.read_bytes(file) for file in files]


@pytest.mark.parametrize("center", [False, True])
def test_a_graph_built_in_parts_equals_that_of_the_whole(center, workspace):
    build(workspace, center=center, shuffle=True)
    whole = FeatureSet(workspace, "gradients", center=center).read_all()
    np.testing.assert_array_equal(whole_graph(workspace, "graph/x"), knn_graph(whole, 6))


@pytest.mark.parametrize("graph", ["exact", "ivf"])
def test_one_two_and_four_workers_give_the_same_graph(graph, workspace, monkeypatch):
    monkeypatch.setattr(graph_plan, "_SHARE_OF_MEMORY", 18 * 16 * 4 / 2**30)  # a part per group
    found = []
    for workers in (1, 2, 4):
        plan = build(workspace, f"graph/{workers}", workers=workers, graph=graph)
        assert len(plan.groups) == 3
        found.append(arrays(workspace, f"graph/{workers}"))
    assert found[0] == found[1] == found[2]


def test_groups_of_parts_do_not_change_an_exact_graph(workspace, monkeypatch):
    build(workspace, "graph/whole", graph="exact")
    for room, groups in ((36, 2), (1, 3)):
        monkeypatch.setattr(graph_plan, "_SHARE_OF_MEMORY", room * 16 * 4 / 2**30)
        plan = build(workspace, f"graph/{groups}", graph="exact")
        assert len(plan.groups) == groups
        np.testing.assert_array_equal(
            whole_graph(workspace, f"graph/{groups}"), whole_graph(workspace, "graph/whole")
        )


def test_lists_that_are_all_probed_give_the_exact_graph(workspace):
    build(workspace, "graph/exact", graph="exact")
    build(workspace, "graph/ivf", graph="ivf", recall=0.999999)
    tuned = workspace.stage("graph/ivf").verified("tune-00000")
    assert tuned["probe"] <= tuned["lists"]
    found = measure_recall(workspace, "graph/ivf", FeatureSet(workspace, "gradients", center=True))
    assert found["recall"] > 0.95


@pytest.mark.parametrize("graph", ["Flat", "HNSW32", "IVF4,Flat"])
def test_indexes_of_faiss_can_be_used(graph, workspace):
    build(workspace, graph=graph)
    gradients = FeatureSet(workspace, "gradients", center=True)
    near = whole_graph(workspace, "graph/x")
    assert (near != np.arange(50)[:, None]).all()
    assert (near[[4, 20]] == -1).all() and not np.isin([4, 20], near).any()
    found = measure_recall(workspace, "graph/x", gradients)
    assert found["recall"] > (0.999 if graph != "IVF4,Flat" else 0.1)


def test_an_index_that_faiss_does_not_know_is_refused():
    with pytest.raises(SettingError, match=r"^graph 'Nonsense7' is neither auto, exact, ivf nor"):
        faiss_index("Nonsense7", 16)


def test_auto_is_exact_if_that_takes_seconds(workspace, monkeypatch):
    gradients, settings = FeatureSet(workspace, "gradients"), GraphSettings(neighbors=6)
    assert make_plan(gradients, settings, 2**30, "cpu").search == "exact"
    monkeypatch.setitem(graph_plan._EXACT_PRODUCTS, "cpu", 50 * 50 * 16 - 1)
    assert make_plan(gradients, settings, 2**30, "cpu").search == "ivf"
    assert make_plan(gradients, settings, 2**30, "cuda").search == "exact"


def test_stored_similarities_are_the_cosines_of_the_stored_neighbors(workspace):
    build(workspace)
    x = FeatureSet(workspace, "gradients", center=True).read_all()
    for part, rows in enumerate(PARTS):
        near = workspace.storage.read_array(f"graph/x/part-{part:05d}.neighbors.npy")
        found = workspace.storage.read_array(f"graph/x/part-{part:05d}.similarities.npy")
        assert (near.dtype, found.dtype) == (np.int32, np.float32)
        wanted = np.einsum("nd,nkd->nk", x[rows], x[near])
        np.testing.assert_allclose(found[near >= 0], wanted[near >= 0], atol=1e-5)
        receipt = workspace.stage("graph/x").verified(f"part-{part:05d}")
        assert receipt["rows"] == len(near)
        assert receipt["edges"] == int((near >= 0).sum())


def test_centering_removes_the_common_direction(workspace):
    plain = FeatureSet(workspace, "gradients").read_all()
    centered = FeatureSet(workspace, "gradients", center=True).read_all()
    assert (plain @ plain.T).mean() > 0.2
    assert abs((centered @ centered.T).mean()) < 0.05


def test_an_unfinished_graph_is_not_read(workspace):
    settings = GraphSettings(neighbors=6)
    gradients = FeatureSet(workspace, "gradients")
    write_plan(workspace, "graph/x", make_plan(gradients, settings, 1, "cpu"), gradients)
    GraphBuilder(workspace, "graph/x", settings).do(GraphTask(kind="pair"))
    with pytest.raises(WorkspaceError, match="no finished graph/x yet; run `g2is graph "):
        whole_graph(workspace, "graph/x")


def test_a_truncated_part_is_named(workspace):
    data = workspace.storage.read_bytes("gradients/part-00001.npy")
    workspace.storage.write_bytes("gradients/part-00001.npy", data[:-1])
    with pytest.raises(WorkspaceError, match=r"gradients/part-00001\.npy is damaged"):
        FeatureSet(workspace, "gradients").read_all()


# Growing a pool


def grow(workspace, parts, data=RAW):
    """Write the gradients of the first `parts` parts of `data`."""
    for part, rows in enumerate(PARTS[:parts]):
        if workspace.stage("gradients").verified(f"part-{part:05d}") is None:
            workspace.stage("gradients").commit(
                f"part-{part:05d}", feature_files(part, data[rows]), {}
            )
    rows = PARTS[parts - 1].stop
    invalid = int((~data[:rows].any(axis=1)).sum())
    workspace.stage("gradients").conclude({"rows": rows, "parts": parts, "invalid": invalid})


def extend(workspace, stage, plan, room=2**30, **settings):
    settings = GraphSettings(**{"neighbors": 6, **settings})
    gradients = FeatureSet(workspace, "gradients", center=settings.center, of_graph=True)
    extended = extend_plan(workspace, stage, plan, gradients, room, "cpu")
    return finish(workspace, stage, settings, extended, gradients)


@pytest.fixture
def young(tmp_path):
    """A workspace with the gradients of the first of three parts."""
    made = Workspace(str(tmp_path / "young"))
    grow(made, 1)
    return made


@pytest.mark.parametrize("equal_rows", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_an_extended_exact_graph_equals_the_rebuilt_one_bit_for_bit(center, equal_rows, tmp_path):
    data = np.where(np.arange(50)[:, None] % 3, RAW, RAW[7]) if equal_rows else RAW
    workspace = Workspace(str(tmp_path))
    grow(workspace, 1, data)
    plan = build(workspace, "graph/centered", center=center, graph="exact")
    for parts in (2, 3):
        grow(workspace, parts, data)
        plan = extend(workspace, "graph/centered", plan, center=center, graph="exact")
    assert plan.groups == [[0], [1], [2]]
    rebuilt = build(workspace, "graph/rebuilt", center=center, graph="exact")
    assert rebuilt.groups == [[0, 1, 2]]
    assert arrays(workspace, "graph/centered") == arrays(workspace, "graph/rebuilt")


def test_extending_computes_only_pairs_with_new_parts(young):
    plan = build(young, center=False, graph="exact")
    pair = young.storage.location("graph/x/pair-00000-00000.json")
    before = Path(pair).stat().st_ino
    grow(young, 3)
    plan = extend(young, "graph/x", plan, center=False, graph="exact")
    assert plan.groups == [[0], [1, 2]]
    assert Path(pair).stat().st_ino == before
    pairs = {name for name in young.storage.names("graph/x") if name.startswith("pair")}
    assert {name.split(".")[0] for name in pairs} == {
        f"pair-0000{part}-0000{group}" for part in range(3) for group in range(2)
    }


@pytest.mark.parametrize("killed_at", ["write_plan", "finish"])
def test_an_extension_that_was_killed_is_resumed(killed_at, young, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    plan = build(young, center=False, graph="exact")
    grow(young, 3)
    module = graph_plan if killed_at == "write_plan" else sys.modules[__name__]
    with monkeypatch.context() as patch:
        patch.setattr(module, killed_at, killed)
        with pytest.raises(KeyboardInterrupt):
            extend(young, "graph/x", plan, center=False, graph="exact")
    now = read_plan(young, "graph/x")
    assert now.parts == (1 if killed_at == "write_plan" else 3)
    extend(young, "graph/x", now, center=False, graph="exact")
    build(young, "graph/rebuilt", center=False, graph="exact")
    assert arrays(young, "graph/x") == arrays(young, "graph/rebuilt")


def test_a_centered_graph_keeps_its_mean_until_it_is_rebuilt(young):
    plan = build(young, "graph/centered", graph="exact")
    mean = FeatureSet(young, "gradients", center=True, of_graph=True).mean
    grow(young, 3)
    extend(young, "graph/centered", plan, graph="exact")
    grown = FeatureSet(young, "gradients", center=True, of_graph=True)
    np.testing.assert_array_equal(grown.mean, mean)
    assert (plan.mean_rows, grown.rows) == (18, 50)
    alone = FeatureSet(young, "gradients", center=True)
    np.testing.assert_array_equal(alone.mean, alone.pool_mean())
    young.storage.remove("graph/centered")
    rebuilt = FeatureSet(young, "gradients", center=True, of_graph=True)
    np.testing.assert_array_equal(rebuilt.mean, rebuilt.pool_mean())
    assert not np.array_equal(rebuilt.mean, mean)


def test_lists_stay_and_recall_is_measured_on_the_grown_graph(young):
    plan = build(young, graph="ivf", recall=0.999999, center=False)
    trained = young.storage.read_bytes("graph/x/train-00000.centroids.npy")
    grow(young, 3)
    extended = extend(young, "graph/x", plan, graph="ivf", recall=0.999999, center=False)
    assert young.storage.read_bytes("graph/x/train-00000.centroids.npy") == trained
    assert max(plan.sample) < 18 <= max(extended.sample)
    found = measure_recall(young, "graph/x", FeatureSet(young, "gradients"))
    assert found["recall"] > 0.9
    near = whole_graph(young, "graph/x")
    assert near.shape == (50, 6)
    assert (near[:18] >= 18).any() and (near[18:] >= 0).any()


def test_an_index_of_faiss_is_rebuilt_from_all_rows(young):
    plan = build(young, graph="Flat", center=False)
    grow(young, 3)
    assert extend(young, "graph/x", plan, graph="Flat", center=False).groups == [[0, 1, 2]]
    build(young, "graph/exact", graph="exact", center=False)
    np.testing.assert_array_equal(whole_graph(young, "graph/x"), whole_graph(young, "graph/exact"))
