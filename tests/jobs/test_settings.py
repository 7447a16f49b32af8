"""Settings that a workspace remembers: which stage each comes from; and a file of settings."""

import pytest

from g2is_ray.config import (
    BudgetSettings,
    EvaluateSettings,
    GradientSettings,
    GraphSettings,
    LoraSettings,
    ModelSettings,
    SeedSettings,
    TuneSettings,
    WalkSettings,
)
from g2is_ray.selector.methods import BaselineSettings
from g2is_ray.workspace.workspace import Workspace
from jobs.session import Session
from jobs.settings import NEVER_REMEMBERED, RUN, is_remembered

TRIALS = "comparisons/100/law/trials"


@pytest.fixture
def session(empty_folder) -> Session:
    """A workspace whose stages remember different values of the same settings."""
    held = Workspace("ws")
    remembered = {
        "pool": {"model": "m", "seed": 3},
        "targets/law/val": {"target": {"law": "law.jsonl"}},
        "warmup": {"lora_r": 4, "seed": 5},
        "gradients": {"projection_dim": 16},
        "graph/uncentered": {"neighbors": 6},
        "selections/law": {"fraction": 0.2, "neighbors": 7, "baselines": ["less"]},
        "selections/math": {"fraction": 0.3, "delta": 0.4},
        "tuned/law": {"tune_epochs": 2, "tune_batch_size": 8, "lora_r": 9},
        "tuned/law@less": {"tune_epochs": 5},
        "evaluations/law": {"max_new_tokens": 11},
        TRIALS: {"lora_r": 12, "max_new_tokens": 13},
    }
    for stage, values in remembered.items():
        held.stage(stage).begin({}, arguments=values)
    return Session("ws", {})


@pytest.mark.parametrize(
    ("cls", "names", "found"),
    [
        (ModelSettings, (), {"model": "m"}),
        (SeedSettings, (), {"seed": 3}),
        (LoraSettings, (), {"lora_r": 4}),
        (LoraSettings, (TRIALS,), {"lora_r": 12}),
        (GradientSettings, (), {"projection_dim": 16}),
        (GraphSettings, (), {"neighbors": 6}),
        (GraphSettings, ("law",), {"neighbors": 7}),
        (GraphSettings, ("math",), {"neighbors": 6}),
        (BudgetSettings, (), {"fraction": 0.01}),
        (BudgetSettings, ("law", "math"), {"fraction": 0.2}),
        (WalkSettings, ("law", "math"), {"delta": 0.4}),
        (BaselineSettings, ("law",), {"baselines": ("less",)}),
        (TuneSettings, ("law@less",), {"tune_epochs": 5, "tune_batch_size": 8}),
        (EvaluateSettings, ("law",), {"max_new_tokens": 11}),
        (EvaluateSettings, (TRIALS, "law"), {"max_new_tokens": 13}),
    ],
)
def test_a_setting_comes_from_the_most_specific_stage_that_remembers_it(cls, names, found, session):
    settings = session.settings(cls, *names)
    assert {name: getattr(settings, name) for name in found} == found


def test_what_the_command_gives_comes_first(session):
    given = Session("ws", {"tune_epochs": 1})
    assert given.settings(TuneSettings, "law@less").tune_epochs == 1


@pytest.mark.parametrize("cls", NEVER_REMEMBERED)
def test_what_holds_for_one_command_is_never_remembered(cls):
    assert cls in RUN
    assert not is_remembered(cls)


def test_one_configuration_file_holds_settings_of_every_command(empty_folder, refused):
    settings = "methods: [random, less]\nseeds: [1, 2]\nreference: less\nfraction: 0.1\n"
    (empty_folder / "run.yaml").write_text(settings + "pool: none.jsonl\nmodel: m\n")
    arguments = ["--config", "run.yaml", "--workspace", "ws"]
    assert "none.jsonl: no such file" in refused("ingest", *arguments)
    (empty_folder / "run.yaml").write_text(settings + "seeds: [1, 1]\n")
    assert refused("ingest", *arguments).startswith("seeds should each be given once")
