"""Checkpoint folders of a Hugging Face Trainer are imported, or refused by name."""

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, Trainer, TrainingArguments

from g2is_ray.config import ModelSettings
from g2is_ray.errors import InputError
from g2is_ray.models import checkpoints
from g2is_ray.models.loading import lora_parameters
from g2is_ray.training import base_model
from g2is_ray.training.optimizer_files import read
from g2is_ray.training.trainer_folders import digests, import_checkpoints, require_files
from g2is_ray.workspace.workspace import Workspace

RATE = 1e-2
ALL = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(scope="module")
def settings(tiny_model):
    return ModelSettings(model=tiny_model)


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def trained(train):
    return train()


@pytest.fixture(scope="module")
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


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_optimizer(folder, alter):
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    alter(state)
    torch.save(state, folder / "optimizer.pt")


def refusal(workspace, folders, settings):
    """Return the sentence with which an import is refused; require that nothing is written."""
    with pytest.raises(InputError) as refused:
        import_checkpoints(workspace, folders, settings)
    assert not workspace.names("warmup")
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ---- imports -----------------------------------------------------------------


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_imported_moments_are_the_live_optimizers_by_name(optim, train, settings, workspace):
    trainer = train(optim)
    import_checkpoints(workspace, [Path(trainer.args.output_dir, "checkpoint-4")], settings)
    model = checkpoints.load_model(workspace, settings)
    moments = checkpoints.put(model, checkpoints.read(workspace, 1))
    live = lora_parameters(trainer.model)
    assert moments.keys() == live.keys() == lora_parameters(model).keys()
    for name, parameter in live.items():
        state = trainer.optimizer.state[parameter]
        assert torch.equal(moments[name][0], state["exp_avg"])
        assert torch.equal(moments[name][1], state["exp_avg_sq"])
        assert state["exp_avg_sq"].any()
        assert torch.equal(lora_parameters(model)[name].cpu(), parameter.detach())


def test_the_adapter_is_imported_unchanged(folders, settings, workspace):
    import_checkpoints(workspace, folders[1:], settings)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        held = workspace.read_bytes(f"warmup/checkpoint-1/adapter/{name}")
        assert held == (folders[1] / name).read_bytes()


def test_several_folders_become_checkpoints_in_order(folders, settings, workspace):
    receipt = import_checkpoints(workspace, folders, settings)
    assert receipt["imported"] == ["checkpoint-2", "checkpoint-4"]
    assert workspace.receipt("warmup") == receipt
    for number, folder in enumerate(folders, start=1):
        adapter = load_file(folder / "adapter_model.safetensors")
        model = checkpoints.load_model(workspace, settings)
        checkpoints.put(model, checkpoints.read(workspace, number))
        for name, parameter in lora_parameters(model).items():
            assert torch.equal(parameter.cpu(), adapter[f"base_model.model.{name}"])


def test_learning_rates_are_the_means_of_those_logged_since_the_folder_before(
    folders, settings, workspace
):
    receipt = import_checkpoints(workspace, folders, settings)
    wanted = [RATE * (4 / 4 + 3 / 4) / 2, RATE * (2 / 4 + 1 / 4) / 2]  # linear, of four steps
    assert receipt["learning_rates"] == pytest.approx(wanted)
    assert checkpoints.weights(workspace) == pytest.approx([0.7, 0.3])


def test_a_single_folder_needs_no_log(folders, settings, workspace):
    (folders[1] / "trainer_state.json").unlink()
    import_checkpoints(workspace, folders[1:], settings)
    assert checkpoints.weights(workspace) == [1.0]


def test_half_precision_moments_become_float32(folders, settings, workspace):
    def halve(state):
        for held in state["state"].values():
            held["exp_avg"] = held["exp_avg"].bfloat16()

    change_optimizer(folders[1], halve)
    import_checkpoints(workspace, folders[1:], settings)
    model = checkpoints.load_model(workspace, settings)
    moments = checkpoints.put(model, checkpoints.read(workspace, 1))
    assert {m.dtype for pair in moments.values() for m in pair} == {torch.float32}


def test_another_content_has_another_digest(folders, other):
    before = digests(folders)
    assert digests(folders) == before
    shutil.copy(other / "checkpoint-4/optimizer.pt", folders[1] / "optimizer.pt")
    after = digests(folders)
    assert after[0] == before[0]
    assert after[1].keys() == before[1].keys() == {"checkpoint-4"}
    assert after[1] != before[1]


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


# ---- folders and files -------------------------------------------------------


LACKING = {
    "adapter_config.json": "has no adapter_config.json; give checkpoint folders",
    "adapter_model.safetensors": "has adapter_config.json but no adapter_model.safetensors",
    "optimizer.pt": "has an adapter but no optimizer.pt: it was saved without AdamW's moments",
}


@pytest.mark.parametrize(("name", "said"), LACKING.items(), ids=LACKING)
def test_a_missing_file_is_named(name, said, folders, settings, workspace):
    (folders[1] / name).unlink()
    assert refusal(workspace, folders, settings).startswith(f"{folders[1]} {said}")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"/checkpoint-9 does not exist; warmup_from takes"):
        require_files([tmp_path / "checkpoint-9"])


def test_the_folder_of_a_training_names_its_checkpoints(folders):
    with pytest.raises(InputError, match=r"is the folder of a training; .* as checkpoint-4"):
        require_files([folders[1].parent])


def test_a_full_fine_tuning_is_named(folders):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folders[1] / name).unlink()
    (folders[1] / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"but model\.safetensors: it is of a full fine-tuning"):
        require_files(folders)


@pytest.mark.parametrize(
    ("name", "maker"),
    [("global_step4", "DeepSpeed"), ("optimizer.bin", "FSDP"), ("optimizer_0", "FSDP")],
)
def test_software_that_saves_moments_in_another_way_is_named(name, maker, folders):
    (folders[1] / "optimizer.pt").rename(folders[1] / name)
    with pytest.raises(InputError, match=rf"has no optimizer\.pt but {name}: files of {maker} "):
        require_files(folders)


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


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_named(name, folders, settings, workspace):
    (folders[1] / name).write_bytes(b"\x10")
    assert refusal(workspace, folders[1:], settings).startswith(f"{folders[1]}/{name}: ")


# ---- adapters ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True),
        ("bias", "lora_only"),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1, 2]),
        ("lora_bias", True),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("layer_replication", [[0, 4], [2, 5]]),
        ("of_a_later_peft", {"on": True}),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused_by_setting(
    name, value, folders, settings, workspace
):
    change(folders[1] / "adapter_config.json", **{name: value})
    sentence = refusal(workspace, folders[1:], settings)
    assert f"adapter_config.json: sets {name} to {json.dumps(value)}" in sentence


def test_an_adapter_that_is_not_lora_is_refused(folders, settings, workspace):
    change(folders[1] / "adapter_config.json", peft_type="IA3")
    assert "peft_type should be LORA, got 'IA3'" in refusal(workspace, folders[1:], settings)


def test_ranks_that_differ_by_module_are_imported(tiny_model, settings, workspace, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = LoraConfig(
        r=4, target_modules=ALL, rank_pattern={"q_proj": 2}, use_rslora=True, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    model.save_pretrained(tmp_path / "one")
    torch.save(optimizer.state_dict(), tmp_path / "one/optimizer.pt")
    import_checkpoints(workspace, [tmp_path / "one"], settings)
    moments = checkpoints.put(
        checkpoints.load_model(workspace, settings), checkpoints.read(workspace, 1)
    )
    assert moments["model.layers.0.self_attn.q_proj.lora_A.weight"][0].shape == (2, 192)


def test_an_adapter_of_another_architecture_is_refused(folders, workspace, tmp_path):
    AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)
    ).save_pretrained(tmp_path / "gpt2")
    change(folders[1] / "adapter_config.json", base_model_name_or_path=None)
    sentence = refusal(workspace, folders[1:], ModelSettings(model=str(tmp_path / "gpt2")))
    assert sentence.startswith(f"{folders[1]}/adapter_config.json: does not fit the model")


def test_an_adapter_of_a_deeper_model_is_refused_by_weight(
    tiny_model, folders, workspace, tmp_path
):
    shutil.copytree(tiny_model, tmp_path / "shallow")
    change(tmp_path / "shallow/config.json", num_hidden_layers=5)
    change(folders[1] / "adapter_config.json", base_model_name_or_path=None)
    sentence = refusal(workspace, folders[1:], ModelSettings(model=str(tmp_path / "shallow")))
    assert "adapter_model.safetensors: the adapter's weight model.layers.5." in sentence


def test_folders_of_different_adapters_are_refused_by_setting(folders, settings, workspace):
    change(folders[1] / "adapter_config.json", lora_alpha=99)
    sentence = refusal(workspace, folders, settings)
    assert "has lora_alpha 99, but checkpoint-2 has 8" in sentence


def test_the_order_of_module_names_makes_no_difference(folders, settings, workspace):
    change(folders[0] / "adapter_config.json", target_modules=ALL)
    change(folders[1] / "adapter_config.json", target_modules=ALL[::-1])
    import_checkpoints(workspace, folders, settings)


@pytest.mark.parametrize(
    "values",
    [
        {"r": "many"},
        {"r": 0},
        {"lora_alpha": []},
        {"target_modules": 5},
        {"target_modules": "(("},
        {"rank_pattern": ["q_proj"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens"]},
    ],
)
def test_an_adapter_without_usable_gradients_is_refused_at_once(
    values, folders, settings, workspace
):
    change(folders[1] / "adapter_config.json", **values)
    sentence = refusal(workspace, folders[1:], settings)
    assert sentence.startswith(f"{folders[1]}/adapter_config.json: ")


# ---- the base model ----------------------------------------------------------


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_an_initialization_that_changes_the_base_is_refused(init, folders, settings, workspace):
    change(folders[1] / "adapter_config.json", init_lora_weights=init)
    sentence = refusal(workspace, folders[1:], settings)
    assert f"init_lora_weights is '{init}', which changes the base weights" in sentence
    assert "path_initial_model_for_weight_conversion" in sentence


@pytest.mark.parametrize(
    "values",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": False},
    ],
)
def test_other_initializations_make_no_difference(values, folders, settings, workspace):
    change(folders[1] / "adapter_config.json", **values)
    import_checkpoints(workspace, folders[1:], settings)
    adapter = load_file(folders[1] / "adapter_model.safetensors")
    model = checkpoints.load_model(workspace, settings)
    for name, parameter in lora_parameters(model).items():
        assert torch.equal(parameter.cpu(), adapter[f"base_model.model.{name}"])


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.2-1B-Instruct", "/scratch/merged"])
def test_an_adapter_of_another_base_is_refused_by_name(name, folders, settings, workspace):
    change(folders[1] / "adapter_config.json", base_model_name_or_path=name)
    sentence = refusal(workspace, folders[1:], settings)
    assert f"was trained on {name}, but the model here is {settings.model}; give" in sentence


@pytest.mark.parametrize("changed", [True, False], ids=["other weights", "the same weights"])
def test_local_bases_are_compared_by_their_weights(
    changed, tiny_model, folders, settings, workspace, tmp_path
):
    shutil.copytree(tiny_model, tmp_path / "other")
    change(folders[1] / "adapter_config.json", base_model_name_or_path=str(tmp_path / "other"))
    if not changed:
        import_checkpoints(workspace, folders[1:], settings)
        return
    weights = tmp_path / "other/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    sentence = refusal(workspace, folders[1:], settings)
    assert f"was trained on {tmp_path / 'other'}, but the model here is" in sentence


@pytest.mark.parametrize("name", ["org/tiny-lm", "/scratch/tiny-lm", None, ""])
def test_a_base_of_the_same_name_elsewhere_is_accepted(name, folders, settings, workspace):
    change(folders[1] / "adapter_config.json", base_model_name_or_path=name)
    import_checkpoints(workspace, folders[1:], settings)


@pytest.mark.parametrize(
    ("model", "revision", "refused"),
    [
        ("org/name", "step1000", True),
        ("org/name", "main", False),
        ("org/name", "abc", False),
        ("/cache/models--org--name/snapshots/def123", "abc", True),
        ("/cache/models--org--name/snapshots/abc123", "abc123", False),
    ],
)
def test_another_revision_of_the_base_is_refused(model, revision, refused, tmp_path):
    adapter = {"base_model_name_or_path": "org/name", "revision": revision}
    config = GPT2Config()
    config._commit_hash = "abc999"
    expected = pytest.raises(InputError, match=rf"revision {revision}, but the model here is")
    with expected if refused else contextlib.nullcontext():
        base_model.require_same(tmp_path / "adapter_config.json", adapter, model, config)


# ---- missing learning rates --------------------------------------------------


def test_folders_out_of_order_are_refused(folders, settings, workspace):
    sentence = refusal(workspace, folders[::-1], settings)
    assert "is of step 2, but the folder before it is of step 4" in sentence


def test_several_folders_need_trainers_state(folders, settings, workspace):
    (folders[0] / "trainer_state.json").unlink()
    assert "checkpoint-2 has no trainer_state.json" in refusal(workspace, folders, settings)


def test_a_gap_in_the_log_is_named(folders, settings, workspace):
    state = json.loads((folders[1] / "trainer_state.json").read_text())
    kept = [entry for entry in state["log_history"] if entry["step"] <= 2]
    change(folders[1] / "trainer_state.json", log_history=kept)
    sentence = refusal(workspace, folders, settings)
    assert "logs no learning rate above 0 after step 2 up to 4" in sentence


def test_a_state_that_is_not_trainers_is_refused(folders, settings, workspace):
    (folders[1] / "trainer_state.json").write_text('{"global_step": 4}')
    assert "is not the state of a Hugging Face Trainer" in refusal(workspace, folders, settings)
