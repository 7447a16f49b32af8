"""A training of the bundled model by a Hugging Face Trainer, and copies of what it leaves."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trainer_files import ALL, RATE
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from g2is_ray.config import ModelSettings
from g2is_ray.workspace.workspace import Workspace


@pytest.fixture(scope="session")
def settings(tiny_model):
    return ModelSettings(model=tiny_model)


@pytest.fixture(scope="session")
def train(tiny_model, tmp_path_factory):
    """A function that trains four steps, saving after 2 and 4, and returns the Trainer."""

    def run(optim="adamw_torch", *, r=4, targets=ALL, **arguments):
        folder = tmp_path_factory.mktemp("training")
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        config = LoraConfig(r=r, target_modules=targets, task_type="CAUSAL_LM")
        rows = [{"input_ids": list(range(i, i + 9)), "labels": list(range(9))} for i in range(4)]
        given = TrainingArguments(
            output_dir=str(folder),
            optim=optim,
            learning_rate=RATE,
            max_steps=4,
            per_device_train_batch_size=2,
            logging_steps=1,
            save_steps=2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **arguments,
        )
        trainer = Trainer(model=get_peft_model(base, config), args=given, train_dataset=rows)
        trainer.train()
        return trainer

    return run


@pytest.fixture(scope="session")
def trained(train):
    return train()


@pytest.fixture(scope="session")
def other(train):
    """A training of an adapter of another rank."""
    return Path(train(r=8).args.output_dir)


@pytest.fixture
def folders(trained, tmp_path):
    """Copies of a training's two checkpoint folders, for tests to change."""
    copied = [tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"]
    for folder in copied:
        shutil.copytree(Path(trained.args.output_dir) / folder.name, folder)
    return copied


@pytest.fixture
def workspace(tmp_path):
    return Workspace(str(tmp_path / "ws"))
