"""`g2is walk` on arrays: what it writes, and what it refuses before it writes."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from g2is_ray.config import WalkSettings, build, fields_of
from g2is_ray.graph.search import knn_graph
from jobs.flags import parser_of
from jobs.walk import DEFAULTS, ArraySettings

ORACLES = sorted((Path(__file__).parents[1] / "oracle").glob("*.json"))


@pytest.fixture(autouse=True)
def arrays(empty_folder):
    rng = np.random.default_rng(0)
    train = rng.standard_normal((60, 8)).astype(np.float32)
    np.save("train.npy", train)
    np.save("target.npy", rng.standard_normal((6, 8)).astype(np.float32))
    return train


def walk(*more, train="train.npy", target="target.npy", output="out"):
    return "walk", "--train", train, "--target", target, "--output", output, *more


def picks(output="out"):
    return [json.loads(line) for line in Path(output, "selection.jsonl").read_text().splitlines()]


def summary(output="out"):
    return json.loads(Path(output, "summary.json").read_text())


@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_the_authors_selection_comes_out_of_files(path, g2is):
    wanted, given = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    save_file({"x": given["train"]}, "x.safetensors")
    np.save("v.npy", given["target"])
    np.save("g.npy", given["graph"])
    settings = [
        part
        for name in ("fraction", "delta", "explained_variance")
        for part in (f"--{name.replace('_', '-')}", wanted[name])
    ]
    g2is(
        *walk("--graph", "g.npy", "--on-exhausted", "stop", train="x.safetensors", target="v.npy"),
        *settings,
    )
    assert [pick["row"] for pick in picks()] == wanted["selected"]
    assert summary()["selected"] == len(wanted["selected"])
    for name in ("budget", "components"):
        assert summary()[name] == wanted[name]


def test_a_line_holds_the_documented_fields_and_nothing_else(g2is):
    g2is(*walk("--fraction", "0.2"))
    for rank, pick in enumerate(picks()):
        refused = ["conflicting", "inconsistent"]
        assert list(pick) == ["rank", "row", "component", "step", "similarity", *refused]
        assert pick["rank"] == rank
        assert pick["step"] in ("anchor", "neighbor", "fallback")


def test_the_whole_pool_can_be_asked_for(g2is):
    g2is(*walk("--fraction", "1"))
    assert sorted(pick["row"] for pick in picks()) == list(range(60))


def test_a_built_graph_is_the_exact_one(g2is, arrays):
    unit = arrays / np.linalg.norm(arrays, axis=1, keepdims=True)
    np.save("g.npy", knn_graph(unit, 5))
    g2is(*walk("--fraction", "0.3", "--neighbors", "5", output="built"))
    g2is(*walk("--fraction", "0.3", "--graph", "g.npy", output="given"))
    assert picks("built") == picks("given")


def test_rows_need_not_be_normalized(g2is, arrays):
    scales = np.random.default_rng(1).uniform(0.01, 100, size=(60, 1))
    np.save("scaled.npy", arrays * scales)
    g2is(*walk("--fraction", "0.3", output="a"))
    g2is(*walk("--fraction", "0.3", train="scaled.npy", output="b"))
    assert [pick["row"] for pick in picks("a")] == [pick["row"] for pick in picks("b")]


def test_center_makes_a_shift_of_the_pool_harmless(g2is, arrays):
    np.save("shifted.npy", arrays + np.float32(5))
    g2is(*walk("--fraction", "0.3", "--center", output="a"))
    g2is(*walk("--fraction", "0.3", "--center", train="shifted.npy", output="b"))
    assert [pick["row"] for pick in picks("a")] == [pick["row"] for pick in picks("b")]


def test_the_default_is_the_paper_with_a_full_budget():
    settings = build(WalkSettings, DEFAULTS)
    assert (settings.pca, settings.orient) == ("centered", False)
    assert settings.on_exhausted == "restart"


def test_every_flag_has_a_help_text():
    parser = next(
        action
        for action in parser_of(["walk"])._actions
        if isinstance(action, argparse._SubParsersAction)
    ).choices["walk"]
    flags = {action.dest: action.help for action in parser._actions}
    assert fields_of([ArraySettings, WalkSettings]).keys() <= flags.keys()
    assert all(flags.values())


@pytest.mark.parametrize("name", ["fraction", "delta", "explained-variance", "neighbors"])
@pytest.mark.parametrize("value", ["-1", "1.5", "nan", "inf", "many", ""])
def test_a_setting_out_of_range_is_named_with_its_value(name, value, refused):
    sentence = refused(*walk(f"--{name}={value}"))
    assert sentence.startswith(name.replace("-", "_") + " should ")
    assert f"got {value!r}" in sentence


@pytest.mark.parametrize("missing", ["train", "target", "output"])
def test_a_missing_argument_is_asked_for(missing, refused):
    given = {"train": "train.npy", "target": "target.npy", "output": "out"}
    del given[missing]
    arguments = [part for name, value in given.items() for part in (f"--{name}", value)]
    assert refused("walk", *arguments).startswith(f"{missing} is not set")


@pytest.mark.parametrize("missing", ["train", "target", "output"])
def test_an_empty_argument_is_refused(missing, refused):
    assert refused(*walk(**{missing: ""})).startswith(f"{missing} should ")


@pytest.mark.parametrize("k", [60, 61, 10**14])
def test_k_must_be_below_the_rows(k, refused):
    sentence = refused(*walk("--neighbors", k, "--fraction", "0.5"))
    assert sentence == f"neighbors must be below the number of rows, 60, got {k}"


def test_a_k_beyond_any_rows_is_refused(refused):
    assert refused(*walk("--neighbors", 10**30)).startswith("neighbors should be less than ")


@pytest.mark.parametrize("fraction", ["0.016", "1e-300"])
def test_a_budget_of_no_row_is_refused(fraction, refused):
    assert "of 60 rows is less than one row" in refused(*walk("--fraction", fraction))


def test_a_graph_and_a_k_exclude_each_other(refused):
    np.save("g.npy", np.zeros((60, 1), dtype=np.int32))
    sentence = refused(*walk("--graph", "g.npy", "--neighbors", "3"))
    assert sentence.startswith("graph and neighbors exclude each other")


def test_a_graph_row_out_of_range_is_refused_with_its_file(refused):
    np.save("g.npy", np.full((60, 1), 60))
    assert refused(*walk("--graph", "g.npy", "--fraction", "0.5")).startswith("g.npy: names row 60")


@pytest.mark.parametrize("rows", [np.ones((5, 3)), np.ones((5, 9))])
def test_dimensions_that_differ_are_both_named(rows, refused):
    np.save("other.npy", rows)
    sentence = refused(*walk("--fraction", "0.5", target="other.npy"))
    assert sentence.startswith("pool gradients have 8 dimensions")
    assert sentence.endswith(str(rows.shape[1]))


def test_dimensions_are_compared_before_the_graph_is_built(refused, monkeypatch):
    monkeypatch.setattr("jobs.walk.knn_graph", lambda *_: pytest.fail("the graph was built"))
    np.save("other.npy", np.ones((5, 3)))
    refused(*walk("--fraction", "0.5", target="other.npy"))


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (np.ones((1, 8)), "1 usable rows, but centered components need at least 2"),
        (np.zeros((4, 8)), "0 usable rows"),
        (np.ones((4, 8)), "all alike"),
    ],
    ids=["one row", "zeros", "equal rows"],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # PCA of equal rows
def test_a_target_without_components_is_refused(target, problem, refused):
    np.save("other.npy", target)
    assert problem in refused(*walk("--fraction", "0.5", target="other.npy"))


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("file", "cannot be written"),
        ("file/below", "cannot be written"),
        ("nowhere://x", "Protocol not known"),
    ],
)
def test_an_output_that_cannot_be_written_is_named(output, problem, refused):
    Path("file").write_text("kept")
    sentence = refused(*walk("--fraction", "0.5", output=output))
    assert output in sentence
    assert problem in sentence
    assert Path("file").read_text() == "kept"


def test_a_refused_walk_leaves_an_earlier_result_alone(g2is, refused):
    g2is(*walk("--fraction", "0.2"))
    before = {file.name: file.read_bytes() for file in Path("out").iterdir()}
    refused(*walk("--fraction", "0.2", target="none.npy"))
    assert {file.name: file.read_bytes() for file in Path("out").iterdir()} == before
