"""An imported adapter's loss on the pool: on its own base model, and on another."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.config import (
    ExecutionSettings,
    LoraSettings,
    ModelSettings,
    ReadSettings,
    TrainingPlan,
)
from g2is_ray.data.examples import write_examples
from g2is_ray.models.loading import load_tokenizer
from g2is_ray.training.imported import LOSSES, doubt, measure
from g2is_ray.training.tuning import TunedModel
from g2is_ray.workspace.workspace import Workspace

EXECUTION = ExecutionSettings()
MODEL = "here/model"


@pytest.fixture(scope="module")
def warmed(tiny_model, tmp_path_factory):
    """A workspace whose warm-up has learned its few rows."""
    folder = tmp_path_factory.mktemp("warmed")
    pairs = [{"prompt": f"Add {n} and 7.", "completion": f"It is {n + 7}."} for n in range(8)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    workspace, settings = Workspace(str(folder / "ws")), ModelSettings(model=tiny_model)
    encoder = ChatEncoder(load_tokenizer(settings), max_tokens=48)
    write_examples(workspace, "pool", [str(folder / "pool.jsonl")], encoder, ReadSettings())
    plan = TrainingPlan(
        model=settings,
        lora=LoraSettings(lora_r=4, lora_alpha=16),
        epochs=4,
        learning_rate=1e-2,
        batch_size=4,
        schedule="linear",
        max_tokens=48,
        seed=0,
        checkpoints=1,
    )
    tuned = TunedModel(workspace, "warmup", plan, range(8), EXECUTION, scratch=folder / "scratch")
    tuned.trainer.train()
    tuned.save()
    return workspace


def test_an_adapter_lowers_its_own_bases_loss_and_not_anothers(warmed, tiny_model, tmp_path):
    own = measure(warmed, ModelSettings(model=tiny_model), EXECUTION, 48)
    assert warmed.receipt("warmup", LOSSES) == own
    assert own["rows"] == 8
    assert own["tuned"] < 0.8 * own["base"]
    assert not doubt(own, {"train_loss": own["tuned"], "base": MODEL}, MODEL)

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "_proj" in name:
                parameter.add_(torch.randn(parameter.shape) * parameter.std())
    base.save_pretrained(tmp_path)
    load_tokenizer(ModelSettings(model=tiny_model)).save_pretrained(tmp_path)
    other = measure(warmed, ModelSettings(model=str(tmp_path)), EXECUTION, 48)
    said = doubt(other, {"train_loss": own["tuned"], "base": "its/base"}, MODEL)
    assert "its/base, is the model here, here/model" in said


@pytest.mark.parametrize(
    ("tuned", "base", "logged", "doubted"),
    [
        (1.0, 2.0, 1.1, False),
        (1.0, 2.0, None, False),
        (2.0, 2.01, 1.9, False),
        (2.1, 2.0, 2.1, True),  # the adapter does harm
        (1.8, 2.0, 1.2, True),  # not what the training had
        (1.0, 2.0, 2.0, True),
        (float("nan"), 2.0, None, True),
    ],
)
def test_what_is_doubted(tuned, base, logged, doubted):
    losses = {"rows": 32, "tuned": tuned, "base": base}
    assert bool(doubt(losses, {"train_loss": logged, "base": None}, MODEL)) == doubted
