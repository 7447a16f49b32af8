"""Trackers: every training of a process reports to a run of its own."""

import json
import sys
from types import SimpleNamespace

import pytest

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.config import (
    ExecutionSettings,
    LoraSettings,
    ModelSettings,
    ReadSettings,
    TrainingPlan,
)
from g2is_ray.data.examples import write_examples
from g2is_ray.errors import SettingError
from g2is_ray.models.loading import load_tokenizer
from g2is_ray.training import trackers
from g2is_ray.training.tuning import TunedModel
from g2is_ray.workspace.workspace import Workspace

STAGES = ["comparisons/9/t/trials/a-0", "comparisons/9/t/trials/a-1"]


@pytest.fixture(scope="module")
def plan(tiny_model):
    """One optimizer step."""
    return TrainingPlan(
        model=ModelSettings(model=tiny_model),
        lora=LoraSettings(lora_r=2, lora_alpha=8),
        epochs=1,
        learning_rate=1e-3,
        batch_size=2,
        schedule="linear",
        max_tokens=48,
        seed=0,
    )


@pytest.fixture
def train(tmp_path, plan):
    """Runs trainings of several stages, one after another in this process."""
    workspace = Workspace(str(tmp_path / "ws"))
    pairs = [{"prompt": f"Add {n} and 7.", "completion": f"It is {n + 7}."} for n in range(2)]
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    encoder = ChatEncoder(load_tokenizer(plan.model), max_tokens=plan.max_tokens)
    write_examples(workspace, "pool", [str(file)], encoder, ReadSettings())

    def run(stages, tracker="tensorboard"):
        execution = ExecutionSettings(report_to=(tracker,))
        for number, stage in enumerate(stages):
            scratch = tmp_path / f"scratch-{number}"
            TunedModel(workspace, stage, plan, [0, 1], execution, scratch=scratch).train()

    return run


def event_files(folder):
    return sorted(str(f.parent.relative_to(folder)) for f in folder.rglob("events.out.tfevents*"))


def test_every_training_has_a_folder_of_its_own(train, tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    train(STAGES)
    assert event_files(tmp_path / "ws") == [f"{stage}/tensorboard" for stage in STAGES]


def test_trainings_share_no_folder_below_one_that_the_user_names(train, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    train(STAGES)
    assert event_files(tmp_path / "mine") == STAGES
    assert not event_files(tmp_path / "ws")


def test_a_tracker_that_is_not_installed_is_named(train, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(SettingError, match="names mlflow, which is not installed"):
        train(STAGES, tracker="mlflow")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_ends_with_its_training_even_if_that_fails(name, monkeypatch):
    """The trackers themselves cannot be had here; transformers leaves wandb's run open."""
    ended = []
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(finish=lambda: ended.append(name)))
    with pytest.raises(ZeroDivisionError), trackers.run_ended([name]):
        raise ZeroDivisionError
    assert ended == [name]
    with trackers.run_ended([]):
        pass
    assert ended == [name]
