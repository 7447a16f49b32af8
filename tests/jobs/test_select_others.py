"""`g2is select` with other selectors than the walk: records, budgets, targets, a user's own."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from selection_workspace import ROWS, TARGET_ROWS, TARGETS, make_workspace, selections

from g2is_ray.config import WalkSettings
from g2is_ray.data.examples import ExampleSet
from g2is_ray.features.rows import ArrayRows
from g2is_ray.features.store import FeatureSet
from g2is_ray.features.vectors import normalize
from g2is_ray.graph.search import knn_graph
from g2is_ray.report.collect import target_view
from g2is_ray.selection.arrays import select_from
from g2is_ray.selection.budget import row_budget
from g2is_ray.selector.registry import NAMES
from g2is_ray.selector.walking import GradientWalk
from g2is_ray.workspace.storage import array_bytes
from g2is_ray.workspace.workspace import Workspace
from jobs.main_job import stages
from jobs.selection import all_tasks
from jobs.session import Session

OTHERS = [name for name in NAMES if name != "walk"]
LAW = ("--target", "law=val.jsonl")
OWN = """
import numpy as np
from g2is_ray.selector.interface import Selector, best_first

class Longest(Selector):
    reads = frozenset({"texts"})
    step = "length"

    def picks(self, pool, target, products):
        return best_first(np.array([float(len(text)) for text in pool.texts()]), pool.free)

class Shortest(Selector):
    reads = frozenset({"tokens"})

    def picks(self, pool, target, products):
        return best_first(-pool.tokens, pool.free)
"""


@pytest.fixture
def held(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "ws")


def arguments(held: Workspace, *more: str, fraction: str = "0.2") -> list[str]:
    walk = ["--selector", "walk"]  # of several that are given, the last counts
    return [
        "select",
        "--workspace",
        held.storage.location(""),
        "--fraction",
        fraction,
        *walk,
        *more,
    ]


def picks(held: Workspace, variant: str) -> list[dict]:
    lines = held.storage.read_bytes(f"selections/{variant}/selection.jsonl").splitlines()
    return [json.loads(line) for line in lines]


def summary(held: Workspace, variant: str) -> dict:
    return held.storage.read_json(f"selections/{variant}/summary.json")


def test_every_selector_selects_for_every_target(held, g2is):
    g2is(*arguments(held, "--baselines", "paper", *OTHERS))
    for target in TARGETS:
        assert {pick["step"] for pick in picks(held, target)} <= {"anchor", "neighbor", "fallback"}
        for name in OTHERS:
            made = picks(held, f"{target}@{name}")
            assert len({pick["row"] for pick in made}) == len(made) == 48
            assert [pick["id"] for pick in made] == [f"id-{pick['row']}" for pick in made]
            assert len({pick["step"] for pick in made}) == 1
            assert not {5, 100} & {pick["row"] for pick in made} or name in "random tfidf bm25"
        scores = [pick["similarity"] for pick in picks(held, f"{target}@less")]
        assert scores == sorted(scores, reverse=True)
        assert {pick["similarity"] for pick in picks(held, f"{target}@random")} == {None}


@pytest.mark.parametrize("name", OTHERS)
def test_any_selector_may_make_the_selection_itself(name, held, g2is):
    g2is(*arguments(held, *LAW, "--selector", name, "--baselines", "walk", "random"))
    baselines = {"law@random", "law@walk"} - {f"law@{name}"}
    assert set(held.storage.names("selections")) == {"law", *baselines}
    assert len(picks(held, "law")) == len(picks(held, "law@walk")) == 48
    titles = [target_view(held, "law", ["source"] * ROWS).main.title]
    assert titles == ["random rows" if name == "random" else f"selector {name}"]


def test_a_selection_is_that_of_all_gradients_in_memory(held, g2is):
    g2is(*arguments(held, *LAW, "--baselines", "less", "--subtask-field", "none"))
    x = FeatureSet(held, "gradients", center=True).read_all()
    target = FeatureSet(held, "targets/law/gradients").read_all()
    order = np.argsort(-(x @ normalize(target).mean(axis=0)), kind="stable")
    assert [pick["row"] for pick in picks(held, "law@less")] == order[:48].tolist()


def test_one_pass_over_the_pool_serves_all_selectors(held, g2is, passes):
    g2is(*arguments(held, "--baselines", *OTHERS))
    assert passes == ["gradients", "embeddings"]


def test_selectors_that_read_no_gradients_need_none(held, g2is):
    for stage in ("gradients", "graph", *(f"targets/{target}/gradients" for target in TARGETS)):
        held.storage.remove(stage)
    g2is(*arguments(held, "--selector", "tfidf", "--baselines", "random", "bm25"))
    assert len(picks(held, "math")) == len(picks(held, "math@bm25")) == 48


def without_features(held: Workspace) -> None:
    """Remove all features and graphs, and what the workspace knows of them."""
    kinds = ("gradients", "embeddings")
    gone = [s for s in held.stages() if s.startswith("graph/") or s.endswith(kinds)]
    for stage in gone:
        held.storage.remove(stage)
    held.forget(gone)


def test_a_report_needs_neither_features_nor_graph(held, g2is):
    without_features(held)
    g2is(*arguments(held, "--selector", "tfidf", "--baselines", "random", "bm25"))
    g2is("report", "--workspace", held.storage.location(""))
    assert "selector bm25" in held.storage.read_bytes("report.html").decode()
    shown = g2is("status", "--workspace", held.storage.location(""))
    assert not {"warmup", "gradients", "graph"} & set(shown.split())


@pytest.mark.parametrize("features", ["gradients", "embeddings"])
def test_centered_features_need_no_graph(features, held, g2is):
    own = ["--selector", "less", "--baselines", "gist", "less-round-robin", "--features", features]
    g2is(*arguments(held, *own))
    wanted = selections(held)
    for stage in ("graph", "selections"):
        held.storage.remove(stage)
    held.forget([s for s in held.stages() if s.startswith(("graph/", "selections/"))])
    g2is(*arguments(held, *own))
    assert selections(held) == wanted
    assert set(held.stages()["selections/law"]["inputs"]) == {
        *(features, f"targets/law/{features}", "overlap")
    }


def test_a_pool_that_grew_is_centered_on_its_own_mean_and_a_graph_on_the_mean_it_has(held, g2is):
    stage = "graph/centered"
    other = FeatureSet(held, "gradients").pool_mean() + 1
    held.storage.write_bytes(f"{stage}/mean.npy", array_bytes(other))
    g2is(*arguments(held, *LAW, "--baselines", "less", "graph-diverse"))
    own = FeatureSet(held, "gradients", center=True)
    of_graph = FeatureSet(held, "gradients", center=True, of_graph=True)
    np.testing.assert_array_equal(of_graph.mean, other)
    target = own.of_target("law")
    subtasks = np.arange(TARGET_ROWS) % 3
    means = np.stack([target[subtasks == one].mean(axis=0) for one in range(3)])
    for name, x in (("less", own), ("graph-diverse", of_graph)):
        best = (x.read_all() @ means.T).max(axis=1).argmax()
        assert picks(held, f"law@{name}")[0]["row"] == best


def test_rds_goes_by_embeddings_as_they_are_whatever_the_settings(held, g2is):
    for stage in ("gradients", "graph", *(f"targets/{target}/gradients" for target in TARGETS)):
        held.storage.remove(stage)
    g2is(*arguments(held, *LAW, "--selector", "rds", "--baselines", "random"))
    x = FeatureSet(held, "embeddings").read_all()
    cosines = FeatureSet(held, "targets/law/embeddings").read_all() @ x.T
    wanted: list[int] = []
    while len(wanted) < 48:
        own = cosines[len(wanted) % TARGET_ROWS]
        wanted.append(next(row for row in np.argsort(-own, kind="stable") if row not in wanted))
    assert [pick["row"] for pick in picks(held, "law")] == wanted
    again = ["--features", "embeddings", "--center", "--baselines", "random"]
    g2is(*arguments(held, *LAW, "--selector", "rds", *again))


def test_embeddings_stand_in_for_gradients(held, g2is, refused):
    own = ["--features", "embeddings", "--baselines", "less", "graph-diverse", "paper"]
    g2is(*arguments(held, *LAW, *own, "near=less,features=gradients"))
    by_gradients = picks(held, "law@near")
    x = FeatureSet(held, "embeddings", center=True).read_all()
    unit, norms = (
        held.storage.read_array(f"targets/law/embeddings/part-00000{kind}.npy")
        for kind in ("", ".norms")
    )
    mean = FeatureSet(held, "embeddings").pool_mean()
    target = normalize(norms[:, None] * unit.astype(np.float32), mean)
    budget = row_budget(len(x), 0.2)
    walk = GradientWalk(WalkSettings())
    wanted = select_from(walk, ArrayRows(x), knn_graph(x, 6), target, budget)
    assert [pick["row"] for pick in picks(held, "law")] == wanted.rows
    titles = [view.title for view in target_view(held, "law", [""] * ROWS).others]
    assert "selector less on embeddings" in titles
    assert "as published (preset paper)" in titles
    sentence = refused(*arguments(held, *LAW, "--features", "gradients"))
    assert 'was made with features "embeddings", now it is "gradients"' in sentence
    made = picks(held, "law@less"), picks(held, "law@graph-diverse"), picks(held, "law@paper")
    held.storage.remove("selections")
    other = ["less", "other=less,features=embeddings", "paper"]
    g2is(*arguments(held, *LAW, "--features", "gradients", "--baselines", *other))
    assert picks(held, "law@less") == by_gradients
    assert picks(held, "law@other") == made[0] != by_gradients
    assert picks(held, "law@paper") == made[2]  # on gradients, as published


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({}, ["warm_up", "gradients", "graph"]),
        ({"baselines": ["random", "rds"]}, ["warm_up", "gradients", "embeddings", "graph"]),
        ({"features": "embeddings"}, ["embeddings", "graph"]),
        (
            {"features": "embeddings", "baselines": ["paper"]},
            ["warm_up", "gradients", "embeddings", "graph"],
        ),
        (
            {"baselines": ["other=less,features=embeddings"]},
            ["warm_up", "gradients", "embeddings", "graph"],
        ),
        *(({"selector": name}, []) for name in ("tfidf", "bm25", "random")),
        ({"selector": "rds"}, ["embeddings"]),
        ({"selector": "tfidf", "baselines": ["rds"]}, ["embeddings"]),
        ({"selector": "tfidf", "baselines": ["walk"]}, ["warm_up", "gradients", "graph"]),
        *(({"selector": name}, ["warm_up", "gradients"]) for name in ("less", "gist")),
        ({"selector": "less", "baselines": ["rds"]}, ["warm_up", "gradients", "embeddings"]),
        ({"selector": "less", "features": "embeddings"}, ["embeddings"]),
        ({"selector": "graph-diverse"}, ["warm_up", "gradients", "graph"]),
    ],
)
def test_a_run_makes_features_and_graph_only_if_a_task_reads_them(given, made, held):
    held.forget([stage for stage in held.stages() if stage.startswith("graph/")])
    tasks = all_tasks(Session(held.storage.location(""), given))
    names = [name for name, _ in stages(tasks)]
    assert names == ["ingest", *made, "select_rows", "tune", "evaluate", "report"]


def test_embeddings_that_are_not_there_are_asked_for(held, g2is, refused):
    held.storage.remove("graph/embeddings-uncentered")
    other = ["--baselines", "other=walk,features=embeddings,center=no"]
    assert "run `g2is graph --features embeddings --no-center " in refused(*arguments(held, *other))
    held.storage.remove("embeddings")
    assert "run `g2is embeddings " in refused(*arguments(held, "--selector", "rds"))


def test_subtasks_are_read_from_their_field(held, g2is):
    g2is(*arguments(held, *LAW, "--selector", "less", "--baselines", "walk"))
    by_subtask = picks(held, "law")
    held.storage.remove("selections")
    g2is(*arguments(held, *LAW, "--selector", "less", "--subtask-field", "elsewhere"))
    assert picks(held, "law") != by_subtask


@pytest.mark.parametrize("joint", [False, True], ids=["each", "joint"])
def test_token_budgets_are_kept_by_all(joint, held, g2is):
    more = ["--joint", "--target-weight", "law=3"] if joint else []
    more += ["--budget-tokens", "300", "--baselines", "paper", *OTHERS]
    g2is(*arguments(held, *more, fraction="0.001"))  # which alone would be no row
    for target in ["joint"] if joint else TARGETS:
        for variant in [target, *(f"{target}@{name}" for name in OTHERS)]:
            found = summary(held, variant)
            assert found["unit"] == "supervised tokens"
            assert found["budget"] <= 300
            assert found["budget"] - 30 < found["supervised_tokens"] <= found["budget"]
        spent = summary(held, target)["supervised_tokens"]
        assert summary(held, f"{target}@less")["budget"] == spent


def test_a_token_budget_below_the_longest_row_is_refused(held, refused):
    sentence = refused(*arguments(held, "--budget-tokens", "3"))
    assert re.match(r"budget_tokens 3 is less than the \d+ supervised tokens of the ", sentence)


def test_a_killed_walk_goes_on_within_its_token_budget(held, g2is):
    budget = ["--budget-tokens", "400", "--baselines", "random"]
    g2is(*arguments(held, *budget))
    wanted = selections(held)
    for file in ("selection.jsonl", "component-00001.jsonl"):
        held.storage.write_bytes(f"selections/law/{file}", b"{}")
    g2is(*arguments(held, *budget))
    assert selections(held) == wanted


def test_other_settings_make_another_selection(held, g2is, refused):
    g2is(*arguments(held, "--selector", "less"))
    assert 'was made with selector "less", now it is "gist"' in refused(
        *arguments(held, "--selector", "gist")
    )
    sentence = refused(*arguments(held, "--selector", "less", fraction="0.1"))
    assert "was made with fraction 0.2, now it is 0.1" in sentence


def test_a_selector_that_there_is_not_is_refused_with_those_that_there_are(held, refused):
    names = ", ".join(NAMES)
    sentence = refused(*arguments(held, "--selector", "lss"))
    wanted = f"selector should be {names}, or FILE.py:CLASS for one of your own, got 'lss': "
    assert sentence.startswith(wanted)
    sentence = refused(*arguments(held, "--baselines", "random", "lss"))
    assert sentence.startswith(f"baselines should be paper, {names}, FILE.py:CLASS for one of ")


def test_a_method_with_settings_of_its_own_selects_as_a_selection_with_them(held, g2is):
    loose = "loose=walk,delta=0.3,center=no,explained-variance=0.9"
    g2is(*arguments(held, *LAW, "--baselines", loose, "near=less,center=no"))
    made, usual = picks(held, "law@loose"), picks(held, "law")
    assert len(picks(held, "law@near")) == 48
    titles = [view.title for view in target_view(held, "law", ["source"] * ROWS).others]
    assert titles == ["gradient walk (loose)", "selector less (near)"]
    held.storage.remove("selections")
    own = ["--delta", "0.3", "--no-center", "--explained-variance", "0.9"]
    g2is(*arguments(held, *LAW, *own, "--baselines", "random"))
    assert picks(held, "law") == made != usual


# ---- a selector of one's own ------------------------------------------------------


def test_ones_own_selector_may_go_by_supervised_tokens(held, own, g2is):
    g2is(*arguments(held, *LAW, "--selector", "own.py:Shortest", "--baselines", "random"))
    tokens = [row["supervised_tokens"] for row in ExampleSet(held, "pool").read_all()]
    wanted = sorted((row for row in range(ROWS) if tokens[row]), key=lambda row: tokens[row])
    assert [pick["row"] for pick in picks(held, "law")] == wanted[:48]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = Path("own.py")
    file.write_text(OWN)
    return file


def test_ones_own_selector_selects(held, own, g2is):
    g2is(*arguments(held, "--selector", "own.py:Longest", "--baselines", "walk"))
    made = picks(held, "law")
    scores = [pick["similarity"] for pick in made]
    assert scores == sorted(scores, reverse=True)
    assert {pick["step"] for pick in made} == {"length"}
    g2is(*arguments(held, "--selector", "own.py:Longest", "--baselines", "walk"))


def test_ones_own_selector_is_a_baseline_by_its_class(held, own, g2is):
    g2is(*arguments(held, "--baselines", "random", "own.py:Longest"))
    assert len(picks(held, "law@Longest")) == 48
    assert target_view(held, "law", [""] * ROWS).others[0].title == "selector Longest"


def test_code_that_a_workspace_names_is_not_run_unasked(held, own, g2is, refused):
    g2is(*arguments(held, "--baselines", "own.py:Longest"))
    own.write_text("raise SystemExit('this was run')")
    assert refused(*arguments(held)).startswith(
        "the workspace names the selector own.py:Longest, whose code is run only if you ask for it"
    )


def test_changed_code_makes_another_selection(held, own, g2is, refused):
    command = arguments(held, "--selector", "own.py:Longest")
    g2is(*command)
    own.write_text(OWN.replace("float(len(text))", "-float(len(text))"))
    assert "was made with source_sha256 " in refused(*command)


def test_two_classes_of_one_name_need_another(held, own, g2is, refused):
    Path("other.py").write_text(OWN)
    sentence = refused(*arguments(held, "--baselines", "own.py:Longest", "other.py:Longest"))
    assert sentence.startswith("baselines own.py:Longest and other.py:Longest would both be called")
    g2is(*arguments(held, "--baselines", "own.py:Longest", "Other=other.py:Longest"))
    assert len(picks(held, "law@Other")) == 48
