"""An imported adapter's loss on the pool shows whether the base model is right."""

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


def test_an_adapter_lowers_the_loss_of_its_base_model_only(warmed, tiny_model, tmp_path):
    right = measure(warmed, ModelSettings(model=tiny_model), EXECUTION, 48)
    assert warmed.stage("warmup").verified(LOSSES) == right
    assert right["rows"] == 8
    assert right["tuned"] < 0.8 * right["base"]
    assert not doubt(right, {"train_loss": right["tuned"], "base": MODEL}, MODEL)

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "_proj" in name:
                parameter.add_(torch.randn(parameter.shape) * parameter.std())
    base.save_pretrained(tmp_path)
    load_tokenizer(ModelSettings(model=tiny_model)).save_pretrained(tmp_path)
    wrong = measure(warmed, ModelSettings(model=str(tmp_path)), EXECUTION, 48)
    reason = doubt(wrong, {"train_loss": right["tuned"], "base": "its/base"}, MODEL)
    assert "its/base, is the model here, here/model" in reason


@pytest.mark.parametrize(
    ("tuned", "base", "logged", "doubted"),
    [
        (1.0, 2.0, 1.1, False),
        (1.0, 2.0, None, False),
        (2.0, 2.01, 1.9, False),
        (2.1, 2.0, 2.1, True),  # the adapter does harm
        (1.8, 2.0, 1.2, True),  # far from the logged loss
        (1.0, 2.0, 2.0, True),
        (float("nan"), 2.0, None, True),
    ],
)
def test_doubt_depends_on_the_losses(tuned, base, logged, doubted):
    losses = {"rows": 32, "tuned": tuned, "base": base}
    assert bool(doubt(losses, {"train_loss": logged, "base": None}, MODEL)) == doubted
