"""The optimizer's file of a Trainer: moments find their parameters, or the import is refused."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trainer_files import change_optimizer, refusal

from g2is_ray.models import checkpoints
from g2is_ray.models.loading import lora_parameters
from g2is_ray.training.optimizer_files import read
from g2is_ray.training.trainer_folders import import_checkpoints

# ---- moments that do not fit -------------------------------------------------


def test_moments_of_another_rank_are_refused_by_parameter(folders, other, settings, workspace):
    shutil.copy(other / "checkpoint-4/optimizer.pt", folders[1] / "optimizer.pt")
    sentence = refusal(workspace, folders[1:], settings)
    assert sentence == (
        f"{folders[1]}/optimizer.pt: the AdamW moments of "
        "model.layers.0.self_attn.q_proj.lora_A.weight have shape [8, 192], but the adapter's "
        "parameter has [4, 192]: they are of another adapter"
    )


def test_moments_of_fewer_modules_are_refused_by_parameter(folders, settings, workspace):
    change_optimizer(folders[1], lambda state: state["param_groups"][0]["params"].pop())
    sentence = refusal(workspace, folders[1:], settings)
    assert "lack the adapter's parameter model.layers.5.self_attn.o_proj.lora_B" in sentence


def test_a_parameter_that_was_never_trained_is_named(folders, settings, workspace):
    change_optimizer(folders[1], lambda state: state["state"].pop(2))
    sentence = refusal(workspace, folders[1:], settings)
    assert "lack the adapter's parameter model.layers.0.self_attn.k_proj.lora_A" in sentence


def test_moments_of_more_parameters_are_refused(folders, settings, workspace):
    change_optimizer(folders[1], lambda state: state["param_groups"][0]["params"].append(48))
    sentence = refusal(workspace, folders[1:], settings)
    assert "moments of 49 parameters, but the adapter has 48" in sentence


def test_moments_follow_the_numbers_of_the_groups(folders, trained, settings, workspace):
    """Numbers may be in any order; the lists of the groups map them to parameters."""

    def renumber(state):
        state["state"] = {100 - number: held for number, held in state["state"].items()}
        group = state["param_groups"][0]
        group["params"] = [100 - number for number in group["params"]]

    change_optimizer(folders[1], renumber)
    moments, _ = read(folders[1] / "optimizer.pt", trained.model)
    for name, parameter in lora_parameters(trained.model).items():
        assert torch.equal(moments[name][0], trained.optimizer.state[parameter]["exp_avg"])


def test_parameters_in_several_groups_are_refused(folders, settings, workspace):
    def split(state):
        first, second = state["param_groups"]
        second["params"] = first["params"][24:]
        first["params"] = first["params"][:24]

    change_optimizer(folders[1], split)
    assert "the parameters in 2 groups" in refusal(workspace, folders[1:], settings)


def test_names_in_the_file_override_the_order(folders, trained, settings, workspace):
    """Optimizers write names if they were given named parameters."""
    names = [name for name, p in trained.model.named_parameters() if p.requires_grad]

    def reverse(state):
        first, second = state["param_groups"]
        state["state"] = {47 - number: held for number, held in state["state"].items()}
        halves = names[::-1][:20], names[::-1][20:]
        first["params"], second["params"] = list(range(20)), list(range(20, 48))
        first["param_names"], second["param_names"] = halves

    change_optimizer(folders[1], reverse)
    moments, _ = read(folders[1] / "optimizer.pt", trained.model)
    for name, parameter in lora_parameters(trained.model).items():
        assert torch.equal(moments[name][0], trained.optimizer.state[parameter]["exp_avg"])


def test_moments_of_an_unknown_parameter_are_refused(folders, settings, workspace):
    names = [f"lm_head.{number}" for number in range(48)]
    change_optimizer(folders[1], lambda state: state["param_groups"][0].update(param_names=names))
    assert "moments of lm_head.0, which is no parameter of" in refusal(
        workspace, folders[1:], settings
    )


def test_loraplus_has_a_group_for_each_factor(folders, trained, settings, workspace):
    def split(state):
        first, second = state["param_groups"]
        first["params"], second["params"] = first["params"][0::2], first["params"][1::2]

    change_optimizer(folders[1], split)
    moments, _ = read(folders[1] / "optimizer.pt", trained.model)
    for name, parameter in lora_parameters(trained.model).items():
        assert torch.equal(moments[name][0], trained.optimizer.state[parameter]["exp_avg"])


def test_numbers_of_numpy_are_read(folders, settings, workspace):
    def rate(state):
        state["param_groups"][0].update(lr=np.float64(1e-3), initial_lr=np.float32(1e-2))

    state = torch.load(folders[1] / "optimizer.pt", weights_only=True)
    rate(state)
    torch.save(state, folders[1] / "optimizer.pt")
    import_checkpoints(workspace, folders[1:], settings)


def test_the_betas_of_the_training_are_kept(train, settings, workspace):
    trainer = train(adam_beta1=0.8, adam_beta2=0.95)
    receipt = import_checkpoints(
        workspace, [Path(trainer.args.output_dir, "checkpoint-4")], settings
    )
    assert receipt["betas"] == [[0.8, 0.95]]
    assert checkpoints.read(workspace, 1).betas == (0.8, 0.95)


def test_betas_that_differ_within_a_file_are_refused(folders, settings, workspace):
    def split(state):
        first, second = state["param_groups"]
        first["params"], second["params"] = first["params"][0::2], first["params"][1::2]
        second["betas"] = (0.5, 0.999)

    change_optimizer(folders[1], split)
    assert "betas differ between the groups" in refusal(workspace, folders[1:], settings)


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_of_another_name_is_found(weights, trained, folders, settings, workspace):
    within = folders[1] / "mine"
    within.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folders[1] / name).rename(within / name)
    held = load_file(within / "adapter_model.safetensors")
    if weights.endswith(".bin"):
        (within / "adapter_model.safetensors").unlink()
        torch.save(held, within / weights)
    names = [n.replace("default", "mine") for n, p in trained.model.named_parameters()]
    names = [name for name in names if ".lora_" in name]
    change_optimizer(folders[1], lambda state: state["param_groups"][0].update(param_names=names))
    import_checkpoints(workspace, folders[1:], settings)
    model = checkpoints.load_model(workspace, settings)
    for name, parameter in lora_parameters(model).items():
        assert torch.equal(parameter.cpu(), held[f"base_model.model.{name}"])


# ---- other optimizers --------------------------------------------------------

# State of a parameter in bitsandbytes 0.50.2 (nested) and in older versions (flat).
QUANTIZED = {
    "state1": torch.zeros(4, 192, dtype=torch.uint8),
    "qmap1": torch.zeros(256),
    "state2": torch.zeros(4, 192, dtype=torch.uint8),
    "qmap2": torch.zeros(256),
    "absmax1": torch.zeros(3),
    "absmax2": torch.zeros(3),
}
BITSANDBYTES = {
    "8-bit": {"step": 1, "__bnb_optimizer_quant_state__": QUANTIZED},
    "8-bit, old versions": {"step": 1, **QUANTIZED},
}


@pytest.mark.parametrize("held", BITSANDBYTES.values(), ids=BITSANDBYTES)
def test_an_8_bit_optimizer_is_refused_by_name(held, folders, settings, workspace):
    change_optimizer(
        folders[1], lambda state: state["state"].update(dict.fromkeys(range(48), held))
    )
    sentence = refusal(workspace, folders[1:], settings)
    assert f"{folders[1]}/optimizer.pt: is of a bitsandbytes 8-bit optimizer" in sentence
    assert "adamw_torch" in sentence


@pytest.mark.parametrize("nested", [True, False], ids=["new", "old"])
def test_whole_states_of_bitsandbytes_are_adamws(nested, folders, trained, settings, workspace):
    """paged_adamw_32bit (of QLoRA) and adamw_bnb in 32 bits keep such states."""

    def rename(state):
        for number, held in state["state"].items():
            whole = {"state1": held["exp_avg"], "state2": held["exp_avg_sq"]}
            named = {"__bnb_optimizer_quant_state__": whole} if nested else whole
            state["state"][number] = {"step": 4, **named}

    change_optimizer(folders[1], rename)
    moments, _ = read(folders[1] / "optimizer.pt", trained.model)
    for name, parameter in lora_parameters(trained.model).items():
        state = trained.optimizer.state[parameter]
        assert torch.equal(moments[name][0], state["exp_avg"])
        assert torch.equal(moments[name][1], state["exp_avg_sq"])


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda p: torch.optim.SGD(p, momentum=0.9), "momentum_buffer"),
        (lambda p: torch.optim.SGD(p), "nothing"),
        (torch.optim.Adafactor, "col_var, row_var, step, variance"),
        (lambda p: torch.optim.RMSprop(p), "square_avg, step"),
    ],
    ids=["SGD with momentum", "SGD", "Adafactor", "RMSprop"],
)
def test_another_optimizer_is_refused_by_what_it_holds(make, found, folders, settings, workspace):
    parameters = [torch.nn.Parameter(torch.ones(4, 192)), torch.nn.Parameter(torch.ones(9))]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = make(parameters)
    optimizer.step()
    torch.save(optimizer.state_dict(), folders[1] / "optimizer.pt")
    sentence = refusal(workspace, folders[1:], settings)
    assert f"holds {found}, not AdamW's moments" in sentence


# ---- damaged files ------------------------------------------------------------


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def with_state(**values):
    def damage(file):
        torch.save(torch.load(file, weights_only=True) | values, file)

    return damage


def with_group(**values):
    def damage(file):
        state = torch.load(file, weights_only=True)
        state["param_groups"][0].update(values)
        torch.save(state, file)

    return damage


DAMAGED = {
    "no states": with_state(state=[]),
    "numbers for tensors": with_state(state={0: {"exp_avg": 1.0, "exp_avg_sq": 2.0}}),
    "groups of numbers": with_state(param_groups=[1, 2]),
    "texts for numbers": with_group(params=["a", "b"]),
    "one parameter twice": with_group(params=[0] * 48),
    "a text for betas": with_group(betas="much"),
    "betas beyond one": with_group(betas=(0.9, 1.5)),
    "names that are none": with_group(param_names=[1] * 48),
    "fewer names": with_group(param_names=["a"]),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:5000]),
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1"),
    "a list": lambda file: torch.save([1, 2], file),
    "no groups": lambda file: torch.save({"state": {}}, file),
    "code": lambda file: file.write_bytes(pickle.dumps(Trap())),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_optimizer_file_is_named_and_runs_no_code(
    damage, folders, settings, workspace, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    damage(folders[1] / "optimizer.pt")
    assert refusal(workspace, folders[1:], settings).startswith(f"{folders[1]}/optimizer.pt: ")
    assert not Path("sprung").exists()
