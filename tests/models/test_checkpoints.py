"""Checkpoints of the warm-up: what training leaves, and what is put back into the model."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load, save
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.config import (
    ExecutionSettings,
    LoraSettings,
    ModelSettings,
    ReadSettings,
    TrainingPlan,
)
from g2is_ray.data.examples import write_examples
from g2is_ray.errors import InputError, SettingError
from g2is_ray.models import checkpoints
from g2is_ray.models.loading import load_tokenizer, lora_parameters
from g2is_ray.training.tuning import TunedModel, mean_learning_rates
from g2is_ray.workspace.workspace import Workspace

ROWS, RATE = list(range(10)), 1e-2


@pytest.fixture(scope="module")
def plan(tiny_model):
    """Two epochs of five steps."""
    return TrainingPlan(
        model=ModelSettings(model=tiny_model),
        lora=LoraSettings(lora_r=2, lora_alpha=8),
        epochs=2,
        learning_rate=RATE,
        batch_size=2,
        schedule="linear",
        max_tokens=48,
        seed=0,
        checkpoints=1,
    )


@pytest.fixture(scope="module")
def pool(tmp_path_factory, plan):
    """Makes workspaces that hold the same few rows."""
    folder = tmp_path_factory.mktemp("pool")
    file = folder / "pool.jsonl"
    pairs = [{"prompt": f"Add {n} and 7.", "completion": f"It is {n + 7}."} for n in ROWS]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    encoder = ChatEncoder(load_tokenizer(plan.model), max_tokens=plan.max_tokens)

    def make(name):
        workspace = Workspace(str(folder / name))
        write_examples(workspace, "pool", [str(file)], encoder, ReadSettings())
        return workspace

    return make


class KilledError(Exception):
    """Stands for the end of a process in the middle of training."""


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **rest):
        if state.global_step == self.step:
            raise KilledError


def training(workspace, plan, scratch):
    execution = ExecutionSettings(micro_batch_size=2)
    return TunedModel(workspace, "warmup", plan, ROWS, execution, scratch=scratch)


@pytest.fixture(scope="module")
def warmed(pool, plan, tmp_path_factory):
    """Workspace after an undisturbed warm-up with so many checkpoints."""
    made = {}

    def warm_up(count):
        if count not in made:
            workspace = pool(f"with-{count}")
            its = dataclasses.replace(plan, checkpoints=count)
            tuned = training(workspace, its, tmp_path_factory.mktemp("scratch"))
            tuned.trainer.train()
            tuned.save()
            made[count] = workspace
        return made[count]

    return warm_up


def contents(workspace, number):
    return [
        workspace.storage.read_bytes(f"warmup/{name}") for name in checkpoints.file_names(number)
    ]


def receipt(workspace):
    found = workspace.stage("warmup").verified()
    assert found is not None
    return found


# ---- what training leaves ----------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "count", "wanted"),
    [
        (12, 1, [12]),
        (12, 4, [3, 6, 9, 12]),  # as many as epochs: their ends
        (10, 4, [2, 5, 8, 10]),
        (3, 3, [1, 2, 3]),
        (7, 6, [1, 2, 4, 5, 6, 7]),
    ],
)
def test_checkpoints_are_evenly_spaced_over_the_steps(steps, count, wanted):
    assert checkpoints.ends(steps, count) == wanted


def test_more_checkpoints_than_steps_are_refused():
    with pytest.raises(SettingError, match=r"^checkpoints should be at most .* 3, got 4: "):
        checkpoints.ends(3, 4)


def test_a_warm_up_of_two_checkpoints_ends_like_one_of_one(warmed):
    assert contents(warmed(2), 2) == contents(warmed(1), 1)


def test_an_earlier_checkpoint_has_its_own_adapter_and_moments(warmed):
    early, late = contents(warmed(2), 1), contents(warmed(2), 2)
    assert early[0] == late[0]
    for name, tensor in load(early[1]).items():
        assert not torch.equal(tensor, load(late[1])[name])
    assert early[2] != late[2]


def test_the_receipt_vouches_for_every_checkpoint(warmed):
    names = {*checkpoints.file_names(1), *checkpoints.file_names(2)}
    assert receipt(warmed(2))["files"].keys() == names | {"metrics.jsonl"}


def test_an_earlier_checkpoint_is_what_a_training_that_ends_there_has(warmed, pool, plan, tmp_path):
    workspace = pool("ended")
    tuned = training(workspace, plan, tmp_path)
    tuned.trainer.add_callback(KillAt(5))
    with pytest.raises(KilledError):
        tuned.trainer.train()
    assert list(tuned.checkpoint(1).values()) == contents(warmed(2), 1)


def test_learning_rates_are_the_means_of_the_steps_between(warmed):
    # Ten steps of a linear schedule; int(0.03 * 10) = 0 of them warm up.
    first = RATE * (10 + 9 + 8 + 7 + 6) / 10 / 5
    second = RATE * (5 + 4 + 3 + 2 + 1) / 10 / 5
    assert receipt(warmed(2))["learning_rates"] == pytest.approx([first, second], rel=1e-12)
    assert receipt(warmed(1))["learning_rates"] == pytest.approx([(first + second) / 2], rel=1e-12)


def test_learning_rates_are_those_that_trainer_logs(warmed):
    lines = warmed(2).storage.read_bytes("warmup/metrics.jsonl").splitlines()
    logged = [e["learning_rate"] for e in map(json.loads, lines) if "learning_rate" in e]
    assert len(logged) == 10
    means = [math.fsum(logged[:5]) / 5, math.fsum(logged[5:]) / 5]
    assert receipt(warmed(2))["learning_rates"] == pytest.approx(means, rel=1e-12)


@pytest.mark.parametrize(("steps", "warming"), [(1, 0), (3, 0), (40, 1), (100, 3)])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_no_step_has_a_learning_rate_of_zero(schedule, steps, warming, tmp_path):
    arguments = TrainingArguments(
        str(tmp_path), learning_rate=RATE, lr_scheduler_type=schedule, warmup_steps=warming
    )
    rates = mean_learning_rates(arguments, range(1, steps + 1))
    assert min(rates) > 0
    assert max(rates) == rates[warming] == pytest.approx(RATE)


def test_a_training_of_one_step_trains(pool, plan, tmp_path):
    its = dataclasses.replace(plan, epochs=1, batch_size=len(ROWS))
    tuned = training(pool("one-step"), its, tmp_path)
    tuned.trainer.train()
    assert tuned.facts()["steps"] == 1
    weights = lora_parameters(tuned.model())
    assert all(w.abs().max() > 0 for name, w in weights.items() if "lora_B" in name)


@pytest.mark.parametrize("step", [3, 5, 7], ids=["before", "after", "long after"])
def test_killed_and_resumed_it_leaves_the_same_files(step, warmed, pool, plan, tmp_path):
    workspace = pool(f"killed-at-{step}")
    its = dataclasses.replace(plan, checkpoints=2)
    tuned = training(workspace, its, tmp_path)
    tuned.trainer.add_callback(KillAt(step))
    with pytest.raises(KilledError):
        tuned.trainer.train()
    tuned = training(workspace, its, tmp_path)
    tuned.trainer.train(resume_from_checkpoint=get_last_checkpoint(str(tmp_path)))
    tuned.save()
    for number in (1, 2):
        assert contents(workspace, number) == contents(warmed(2), number)
    assert receipt(workspace)["learning_rates"] == receipt(warmed(2))["learning_rates"]


def test_a_torn_checkpoint_is_rewritten_on_the_way(warmed, pool, plan, tmp_path):
    workspace = pool("torn")
    its = dataclasses.replace(plan, checkpoints=2)
    for name in checkpoints.file_names(1):
        workspace.storage.write_bytes(f"warmup/{name}", b"torn")
    tuned = training(workspace, its, tmp_path)
    tuned.trainer.train()
    tuned.save()
    assert contents(workspace, 1) == contents(warmed(2), 1)


def test_more_checkpoints_than_steps_end_a_training_before_it_begins(pool, plan, tmp_path):
    tuned = training(pool("short"), dataclasses.replace(plan, checkpoints=11), tmp_path)
    with pytest.raises(SettingError, match=r"optimizer steps, 10, got 11"):
        tuned.trainer.train()


def test_without_checkpoints_there_is_an_adapter_alone(pool, plan, tmp_path):
    workspace = pool("plain")
    tuned = training(workspace, dataclasses.replace(plan, checkpoints=0, epochs=1), tmp_path)
    tuned.trainer.train()
    wanted = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "metrics.jsonl"}
    assert tuned.save()["files"].keys() == wanted


# ---- what is put back --------------------------------------------------------


def test_weights_are_learning_rates_of_sum_one(warmed):
    rates = receipt(warmed(2))["learning_rates"]
    wanted = [rates[0] / (rates[0] + rates[1]), rates[1] / (rates[0] + rates[1])]
    assert checkpoints.weights(warmed(2)) == pytest.approx(wanted)


def test_a_single_checkpoint_weighs_one_whatever_its_learning_rate(warmed, tmp_path):
    assert checkpoints.weights(warmed(1)) == [1.0]
    workspace = Workspace(str(tmp_path))
    workspace.stage("warmup").commit("receipt", {}, {"learning_rates": [None]})
    assert checkpoints.weights(workspace) == [1.0]


def test_a_model_is_loaded_with_the_last_checkpoint(warmed, plan):
    model = checkpoints.load_model(warmed(2), plan.model)
    held = load(contents(warmed(2), 2)[1])
    for name, parameter in lora_parameters(model).items():
        assert torch.equal(parameter.cpu(), held[f"base_model.model.{name}"])
    assert not model.training


def test_each_checkpoint_is_put_into_the_same_model(warmed, plan):
    model = checkpoints.load_model(warmed(2), plan.model)
    parameters = lora_parameters(model)
    for number in (1, 2, 1):
        moments = checkpoints.put(model, checkpoints.read(warmed(2), number))
        _, adapter, flat = contents(warmed(2), number)
        for name, parameter in parameters.items():
            assert torch.equal(parameter.cpu(), load(adapter)[f"base_model.model.{name}"])
            assert torch.equal(moments[name][0], load(flat)[f"exp_avg.{name}"])
            assert torch.equal(moments[name][1], load(flat)[f"exp_avg_sq.{name}"])


def lacks_one(tensors):
    return tensors.pop(min(tensors)) is not None


def has_another(tensors):
    tensors["base_model.model.model.layers.77.mlp.up_proj.lora_A.weight"] = torch.ones(2, 2)


def has_another_shape(tensors):
    name = min(tensors)
    tensors[name] = tensors[name][:1].contiguous()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lacks_one, r"weights lack model\.layers\.\d\.self_attn\.\w_proj\.lora_\w\.weight"),
        (has_another, r"weight model\.layers\.77\.mlp\.up_proj\.lora_A\.weight has no place"),
        (has_another_shape, r"size mismatch for .*lora_A.*\[1, \d+\].*\[2, \d+\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_parameter(change, problem, warmed, plan, tmp_path):
    model = checkpoints.load_model(warmed(1), plan.model)
    _, adapter, moments = contents(warmed(1), 1)
    tensors = load(adapter)
    change(tensors)
    workspace = Workspace(str(tmp_path))
    for name, data in zip(checkpoints.file_names(1)[1:], (save(tensors), moments), strict=True):
        workspace.storage.write_bytes(f"warmup/{name}", data)
    with pytest.raises(InputError, match=problem) as refusal:
        checkpoints.put(model, checkpoints.read(workspace, 1))
    assert "\n" not in str(refusal.value)
