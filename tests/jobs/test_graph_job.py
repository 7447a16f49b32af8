"""The job that has graphs built: which ones, and that lists are given up where they do not pay."""

import numpy as np
import pytest

from g2is_ray.features.rows import map_neighbors
from g2is_ray.features.store import FeatureSet, feature_files
from g2is_ray.graph import plan as graph_plan
from g2is_ray.graph.plan import read_plan
from g2is_ray.graph.search import knn_graph
from g2is_ray.workspace.workspace import Workspace
from jobs import graph as job
from jobs.graph import graph_settings
from jobs.session import Session

ROWS, PARTS = 60, 3


@pytest.fixture
def workspace(tmp_path):
    """A workspace with gradients and embeddings, as their stages leave them."""
    made = Workspace(str(tmp_path))
    rng = np.random.default_rng(0)
    for stage, dimensions in (("gradients", 16), ("embeddings", 8)):
        made.stage(stage).begin({"seed": 0})
        for part in range(PARTS):
            x = rng.standard_normal((ROWS // PARTS, dimensions)).astype(np.float32) + 1
            made.stage(stage).commit(f"part-{part:05d}", feature_files(part, x), {})
        made.stage(stage).commit("receipt", {}, {"rows": ROWS, "parts": PARTS, "invalid": 0})
    return made


@pytest.fixture
def here(monkeypatch, in_process):
    """Has the job's pieces computed in this process, one after another."""
    monkeypatch.setattr(job, "_device", lambda session: "cpu")


@pytest.fixture
def build(workspace, here, monkeypatch):
    """Runs the job; returns plan and neighbors."""

    def run(graph, worthwhile):
        monkeypatch.setattr(job, "_WORTHWHILE", worthwhile)
        monkeypatch.setitem(graph_plan._EXACT_PRODUCTS, "cpu", 0)  # auto begins with lists
        settings = {"neighbors": 5, "center": False, "graph": graph}
        job.graph(Session(workspace.storage.location(""), settings))
        stage = "graph/uncentered"
        found = np.concatenate(map_neighbors(workspace, stage).arrays)
        return read_plan(workspace, stage), found, workspace.stage(stage).require()

    return run


def test_auto_compares_all_rows_where_too_many_lists_would_be_probed(build, workspace):
    plan, found, receipt = build("auto", worthwhile=0)
    assert (plan.search, receipt["search"], receipt["recall"]) == ("exact", "exact", 1.0)
    again, same, _ = build("auto", worthwhile=0)
    assert again == plan
    workspace.storage.remove("graph")
    _, exact, _ = build("exact", worthwhile=0)
    np.testing.assert_array_equal(found, exact)
    np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize(("graph", "worthwhile"), [("auto", 1), ("ivf", 0)])
def test_lists_are_kept_where_they_pay_or_are_asked_for(graph, worthwhile, build):
    plan, _, receipt = build(graph, worthwhile)
    assert (plan.search, receipt["search"]) == ("ivf", "ivf")


def test_one_set_of_workers_serves_all_steps_of_a_graph(build, in_process):
    plan, *_ = build("auto", worthwhile=0)  # another search than the first step began with
    (pool,) = in_process
    steps = list(dict.fromkeys(item.partition("-")[0] for item in pool.done))
    assert steps == ["sample", "train", "tune", "pair", "part"]
    assert plan.search == "exact"
    assert pool.ended


def test_a_finished_graph_starts_no_workers(build, in_process):
    build("exact", worthwhile=0)
    build("exact", worthwhile=0)
    assert len(in_process) == 1


def graphs_after(workspace, **settings):
    job.graph(Session(workspace.storage.location(""), {"neighbors": 5, **settings}))
    return workspace.storage.names("graph")


def test_a_graph_is_of_the_features_in_force_less_their_own_mean(workspace, here):
    assert graphs_after(workspace, features="embeddings", baselines=[]) == ["embeddings-centered"]
    x = FeatureSet(workspace, "embeddings", center=True)
    np.testing.assert_allclose(x.mean, x.pool_mean())
    near = np.concatenate(map_neighbors(workspace, "graph/embeddings-centered").arrays)
    np.testing.assert_array_equal(near, knn_graph(x.read_all(), 5))
    assert graph_settings(Session(workspace.storage.location(""), {})).features == "embeddings"


@pytest.mark.parametrize(
    ("baseline", "more"),
    [
        ("random", []),
        ("less", []),
        ("paper", ["uncentered"]),
        ("near=less,center=no", []),
        ("plain=graph-diverse,center=no", ["uncentered"]),
        ("other=walk,features=embeddings", ["embeddings-centered"]),
        ("other=paper,features=embeddings", ["embeddings-uncentered"]),
        ("rds", []),
    ],
)
def test_graphs_that_baselines_read_are_made_and_no_others(baseline, more, workspace, here):
    assert graphs_after(workspace, baselines=[baseline]) == sorted(["centered", *more])
