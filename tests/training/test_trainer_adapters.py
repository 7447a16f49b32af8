"""The adapter in a Trainer's folder: one that gradients cannot be taken of is refused."""

import contextlib
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from trainer_files import ALL, change, refusal
from transformers import AutoModelForCausalLM, GPT2Config

from g2is_ray.config import ModelSettings
from g2is_ray.errors import InputError
from g2is_ray.models import checkpoints
from g2is_ray.models.loading import lora_parameters
from g2is_ray.training import base_model
from g2is_ray.training.trainer_folders import import_checkpoints

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


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_named(name, folders, settings, workspace):
    (folders[1] / name).write_bytes(b"\x10")
    assert refusal(workspace, folders[1:], settings).startswith(f"{folders[1]}/{name}: ")


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
