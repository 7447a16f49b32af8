"""`g2is select` over a workspace: several targets, without the pool in memory, resumed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from selection_workspace import TARGETS, files, make_workspace, selections

from g2is_ray.config import PRESETS, WalkSettings
from g2is_ray.contamination.stage import write_overlap
from g2is_ray.features.rows import ArrayRows
from g2is_ray.features.store import FeatureSet
from g2is_ray.graph.search import knn_graph
from g2is_ray.selection import files as selection_files
from g2is_ray.selection.arrays import select_from
from g2is_ray.selection.budget import row_budget
from g2is_ray.selector.walking import GradientWalk
from g2is_ray.workspace.layout import graph_stage, score_name, variants_in
from g2is_ray.workspace.workspace import Workspace

SETTINGS = {"fraction": 0.2, "explained_variance": 0.9}
FRACTION = SETTINGS["fraction"]


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Workspace]:
    return lambda name: make_workspace(tmp_path / name)


def arguments(held: Workspace, *more: str) -> list[str]:
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    baselines = ["--baselines", "random", "paper"]
    walk = ["--selector", "walk", *baselines]
    return ["select", "--workspace", held.storage.location(""), *settings, *walk, *more]


@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_it_is_the_selection_of_the_same_arrays_in_memory(preset, make, g2is):
    held = make("ws")
    g2is(*arguments(held, "--preset", preset))
    values = {k: v for k, v in PRESETS[preset].items() if k != "selector"}
    x = FeatureSet(held, values.pop("features"), center=values.pop("center")).read_all()
    for target in TARGETS:
        walk = GradientWalk(WalkSettings(explained_variance=0.9, **values))
        wanted = select_from(
            walk,
            ArrayRows(x),
            knn_graph(x, 6),
            FeatureSet(held, f"targets/{target}/gradients").read_all(),
            row_budget(len(x), FRACTION),
        )
        lines = held.storage.read_bytes(f"selections/{target}/selection.jsonl").splitlines()
        assert [json.loads(line)["row"] for line in lines] == wanted.rows
        assert wanted.details["components"] > 3


def test_several_targets_at_once_are_those_targets_one_by_one(make, g2is):
    together, apart = make("together"), make("apart")
    g2is(*arguments(together))
    for target in TARGETS:
        g2is(*arguments(apart, "--target", f"{target}=val.jsonl"))
    assert selections(together) == selections(apart)
    assert len(together.storage.names("selections")) == 3 * len(TARGETS)


def test_one_pass_over_the_pool_serves_all_targets(make, g2is, passes):
    g2is(*arguments(make("ws")))
    assert passes == ["gradients", "gradients"]  # centered, and uncentered for the paper's


def test_the_pool_is_never_read_into_memory(make, g2is, monkeypatch):
    held = make("ws")
    rows_read = []
    read = FeatureSet.read

    def watched(self, part):
        rows_read.append(self.stage)
        return read(self, part)

    monkeypatch.setattr(FeatureSet, "read", watched)
    g2is(*arguments(held))
    assert set(rows_read) == {f"targets/{target}/gradients" for target in TARGETS}


KILLED = """
import os, signal
from g2is_ray.selection import files
from jobs.cli import main
save = files.save_piece
def save_and_die(workspace, stage, component, picks):
    save(workspace, stage, component, picks)
    if (stage, component) == ("selections/law", 1):
        os.kill(os.getpid(), signal.SIGKILL)
files.save_piece = save_and_die
main({arguments})
"""


def test_killed_between_components_it_ends_with_the_same_bytes(make, g2is, monkeypatch):
    whole, killed = make("whole"), make("killed")
    g2is(*arguments(whole))
    script = KILLED.format(arguments=arguments(killed))
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL
    before = files(killed, "selections/law")
    assert "component-00001.jsonl" in before
    assert "selection.jsonl" not in before
    walked = []
    monkeypatch.setattr(selection_files, "save_piece", saved_by(walked))
    g2is(*arguments(killed))
    assert [c for stage, c in walked if stage == "selections/law"] == [
        int(name[10:15])
        for name in whole.storage.names("selections/law")
        if name.startswith("component-") and name.endswith(".jsonl") and name[10:15] > "00001"
    ]
    assert selections(killed) == selections(whole)


def saved_by(walked: list) -> Callable[..., None]:
    save_piece = selection_files.save_piece

    def save(workspace, stage, component, picks):
        walked.append((stage, component))
        save_piece(workspace, stage, component, picks)

    return save


def test_a_damaged_piece_is_walked_again(make, g2is):
    held = make("ws")
    g2is(*arguments(held))
    wanted = selections(held)
    for name in ("component-00001.jsonl", "selection.jsonl"):
        held.storage.write_bytes(f"selections/law/{name}", b"{}")
    g2is(*arguments(held))
    assert selections(held) == wanted


def test_other_settings_are_refused_while_a_walk_is_half_done(make, g2is, refused):
    held = make("ws")
    g2is(*arguments(held))
    os.remove(held.storage.location("selections/law/receipt.json"))  # noqa: PTH107
    sentence = refused(*arguments(held, "--delta", "0.5"))
    assert "was made with delta 0.8, now it is 0.5" in sentence


# ---- one selection for several targets ----------------------------------------------


def summary(held: Workspace, variant: str) -> dict:
    return held.storage.read_json(f"selections/{variant}/summary.json")


def test_a_joint_selection_spends_one_budget_by_target_weight(make, g2is):
    held = make("ws")
    g2is(*arguments(held, "--joint", "--target-weight", "law=3"))
    assert held.storage.names("selections") == ["joint", "joint@paper", "joint@random"]
    for variant in ("joint", "joint@paper"):
        found = summary(held, variant)
        budgets = dict.fromkeys(TARGETS, 0)
        for component in found["per_component"]:
            budgets[component["target"]] += component["budget"]
        assert found["budget"] == found["selected"] == sum(budgets.values()) == 48
        assert budgets["law"] == pytest.approx(48 * 3 / 5, abs=3)
        assert budgets["code"] == pytest.approx(48 / 5, abs=3)


def test_a_joint_selection_of_one_target_is_its_own(make, g2is):
    held = make("ws")
    only = "--target", "law=val.jsonl"
    g2is(*arguments(held, *only))
    g2is(*arguments(held, *only, "--joint"))
    own, joint = files(held, "selections/law"), files(held, "selections/joint")
    assert own["selection.jsonl"] == joint["selection.jsonl"]


def test_targets_of_a_joint_selection_have_it_among_their_variants(make, g2is):
    held = make("ws")
    g2is(*arguments(held, "--joint", "--target", "law=v", "--target", "math=v"))
    g2is(*arguments(held, "--target", "law=v", "--target", "code=v"))
    joint = ["joint", "joint@paper", "joint@random"]
    assert variants_in(held, "law") == ["law", "law@paper", "law@random", *joint]
    assert variants_in(held, "math") == joint
    assert variants_in(held, "code") == ["code", "code@paper", "code@random"]
    assert [score_name("law", v) for v in variants_in(held, "law")] == [
        *("selection", "paper", "random"),
        *joint,
    ]


def test_other_targets_or_weights_are_another_joint_selection(make, g2is, refused):
    held = make("ws")
    g2is(*arguments(held, "--joint", "--target", "law=v", "--target", "math=v"))
    g2is(*arguments(held, "--joint", "--target", "law=v", "--target", "math=v"))
    assert "selections/joint was made with target_weight" in refused(*arguments(held, "--joint"))
    sentence = refused(
        *arguments(held, "--joint", "--target", "law=v", "--target", "math=v"),
        *("--target-weight", "math=2"),
    )
    assert "selections/joint was made with target_weight" in sentence


def test_a_weight_for_nobody_is_refused(make, refused):
    sentence = refused(*arguments(make("ws"), "--joint", "--target-weight", "art=2"))
    assert sentence == "target_weight art names no target; there are code, law, math"


@pytest.mark.parametrize("weight", ["0", "-1", "much", "nan"])
def test_a_weight_that_is_none_is_refused(weight, make, refused):
    sentence = refused(*arguments(make("ws"), "--joint", "--target-weight", f"law={weight}"))
    assert sentence.startswith("target_weight ")
    assert weight in sentence


def test_a_target_named_joint_is_refused_with_joint(make, refused):
    sentence = refused(*arguments(make("ws"), "--joint", "--target", "joint=v"))
    assert sentence == "a target is named joint, as is the selection of --joint; rename it"


# A pool that grows


def grow(held: Workspace) -> None:
    """Record that the pool has grown, and its gradients and graphs with it."""
    held.stage("pool").extend({"model": "none", "files": 2})
    held.stage("gradients").extend({"files": 2})
    for center in (True, False):
        facts = held.stage(graph_stage(center)).require()
        remembered = {"neighbors": 6, "center": center}
        held.stage(graph_stage(center)).begin({}, ["gradients"], remembered, grown="extend")
        held.stage(graph_stage(center)).conclude(facts)
    write_overlap(held)


def made_at(held: Workspace, stage: str) -> int:
    return Path(held.storage.location(f"{stage}/receipt.json")).stat().st_mtime_ns


def test_selections_of_a_smaller_pool_are_recomputed(make, g2is):
    held = make("ws")
    g2is(*arguments(held))
    before = {
        name: made_at(held, f"selections/{name}") for name in held.storage.names("selections")
    }
    grow(held)
    g2is(*arguments(held))
    after = {name: made_at(held, f"selections/{name}") for name in held.storage.names("selections")}
    assert len(after) == 3 * len(TARGETS)
    assert all(after[name] > before[name] for name in before)
    g2is(*arguments(held))
    assert after == {name: made_at(held, f"selections/{name}") for name in after}


def test_a_graph_of_a_smaller_pool_is_to_be_extended_first(make, g2is, refused):
    held = make("ws")
    g2is(*arguments(held))
    held.stage("gradients").extend({"files": 2})
    sentence = refused(*arguments(held))
    assert sentence.startswith("gradients has grown since graph/centered was made; run `g2is graph")


def test_a_selection_that_was_not_recomputed_is_not_compared_with_those_that_were(make, g2is):
    held = make("ws")
    g2is(*arguments(held))
    both = ["law", "law@paper", "law@random"]
    grow(held)
    assert variants_in(held, "law") == both  # all of the smaller pool
    g2is(*arguments(held, "--baselines", "random"))
    assert variants_in(held, "law") == ["law", "law@random"]
    g2is(*arguments(held))
    assert variants_in(held, "law") == both
