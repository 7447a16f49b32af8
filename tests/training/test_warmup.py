"""The warm-up refuses settings that cannot work, and imports checkpoints of a Trainer."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import jobs.gradients
from g2is_ray.config import (
    LoraSettings,
    ModelSettings,
    ReadSettings,
    WarmupSettings,
    as_dict,
)
from g2is_ray.workspace.workspace import Workspace
from jobs.session import Session, identified

WARMUP = ["warmup", "--workspace", "ws"]


@pytest.fixture(autouse=True)
def pool(empty_folder):
    """A folder with a pool of forty rows."""
    pairs = [{"prompt": f"Add {n} and 7.", "completion": f"It is {n + 7}."} for n in range(40)]
    Path("pool.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


@pytest.fixture
def ingest(g2is, tiny_model):
    return lambda: g2is("ingest", "--pool", "pool.jsonl", "--model", tiny_model, *WARMUP[1:])


@pytest.fixture
def checkpoint(tiny_model):
    """A function that writes the folder of a Trainer after `steps` steps."""

    def write(name, steps=1):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(base, config)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters)
        log = []
        for step in range(1, steps + 1):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            log.append({"step": step, "learning_rate": 1e-3})
        model.save_pretrained(name)
        torch.save(optimizer.state_dict(), f"{name}/optimizer.pt")
        state = {"global_step": steps, "log_history": log}
        Path(name, "trainer_state.json").write_text(json.dumps(state))
        return name

    return write


def receipt():
    return json.loads(Path("ws/warmup/receipt.json").read_text())


def record():
    return json.loads(Path("ws/workspace.json").read_text())["stages"]["warmup"]


def test_folders_replace_the_warm_up(g2is, ingest, checkpoint):
    ingest()
    folders = [checkpoint("a", 1), checkpoint("b", 3)]
    g2is(*WARMUP, "--warmup-from", *folders)
    assert receipt()["imported"] == ["a", "b"]
    assert Path("ws/warmup/checkpoint-2/moments.safetensors").exists()
    assert "warmup" in g2is("status", "--workspace", "ws")


def test_imported_folders_are_not_needed_again(g2is, ingest, checkpoint):
    ingest()
    g2is(*WARMUP, "--warmup-from", checkpoint("a"))
    before = receipt()
    g2is(*WARMUP, "--warmup-from", "a")
    shutil.rmtree("a")
    g2is(*WARMUP)
    assert receipt() == before


def test_another_checkpoint_in_the_same_folder_is_refused(g2is, refused, ingest, checkpoint):
    ingest()
    g2is(*WARMUP, "--warmup-from", checkpoint("a", 1))
    shutil.rmtree("a")
    sentence = refused(*WARMUP, "--warmup-from", checkpoint("a", 2))
    assert sentence.startswith('warmup was made with warmup_from [{"a": ')


def test_a_moved_folder_is_recognized_by_its_content(g2is, ingest, checkpoint):
    ingest()
    g2is(*WARMUP, "--warmup-from", checkpoint("a"))
    before = receipt()
    shutil.copytree("a", "elsewhere/a")
    g2is(*WARMUP, "--warmup-from", "elsewhere/a")
    assert receipt() == before


def test_settings_of_tuning_do_not_change_the_import(g2is, ingest, checkpoint):
    ingest()
    g2is(*WARMUP, "--warmup-from", checkpoint("a"), "--lora-r", "16")
    before = record()["fingerprint"]
    assert record()["arguments"]["lora_r"] == 16  # for tuning
    g2is(*WARMUP, "--lora-r", "8")
    assert record()["fingerprint"] == before


def test_a_warm_up_is_not_replaced_by_folders(refused, ingest, checkpoint, tiny_model):
    ingest()
    workspace, model = Workspace("ws"), ModelSettings(model=tiny_model)
    made_with = identified(as_dict(model, LoraSettings(), WarmupSettings()))
    workspace.stage("warmup").begin(made_with, ["pool"])
    workspace.storage.write_bytes("warmup/metrics.jsonl", b"")
    sentence = refused(*WARMUP, "--warmup-from", checkpoint("a"))
    assert "warmup was made with warmup_from [], now it is [" in sentence


def test_a_count_that_the_folders_contradict_is_refused(refused, ingest, checkpoint):
    ingest()
    sentence = refused(*WARMUP, "--warmup-from", checkpoint("a"), "--checkpoints", "2")
    assert sentence == (
        "checkpoints should be the number of folders in warmup_from, 1, or left out, got 2"
    )


def test_more_checkpoints_than_steps_are_refused_before_ray_starts(refused, ingest):
    ingest()
    sentence = refused(*WARMUP, "--warmup-fraction", "0.05", "--checkpoints", "9")
    assert "at most the warm-up's optimizer steps, 8, got 9" in sentence


def test_a_run_refuses_a_missing_folder_before_it_reads_the_pool(refused, tiny_model):
    sentence = refused(
        *("run", "--pool", "pool.jsonl", "--model", tiny_model, "--workspace", "ws"),
        *("--target", "t=pool.jsonl", "--warmup-from", "nowhere"),
    )
    assert sentence.startswith("nowhere does not exist; warmup_from takes")
    assert {path.name for path in Path("ws").iterdir()} == {"events.jsonl", ".lock"}


def test_an_imported_adapter_is_measured_before_gradients(
    g2is, ingest, checkpoint, tiny_model, monkeypatch, in_process
):
    ingest()
    g2is(*WARMUP, "--warmup-from", checkpoint("a"))
    given = Session("ws", {}), ModelSettings(model=tiny_model), ReadSettings(max_tokens=64)
    jobs.gradients._check_import(*given, receipt())
    losses = json.loads(Path("ws/warmup/losses.json").read_text())
    assert losses["rows"] == 32
    said = []
    monkeypatch.setattr(jobs.gradients.log, "warning", lambda form, *rest: said.append(form % rest))
    jobs.gradients._check_import(*given, receipt() | {"train_loss": losses["tuned"] / 2})
    assert f"that its base, {tiny_model}, is the model here, {tiny_model}" in said[0]
