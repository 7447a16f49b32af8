"""Models: the bundled one and its adapters, AdamW's moments, and what is refused."""

import shutil

import pytest
import torch
from safetensors.torch import load, save

from g2is_ray.config import LoraSettings, ModelSettings
from g2is_ray.errors import InputError, SettingError
from g2is_ray.models.loading import (
    add_adapter,
    base_dtype,
    load_adapter,
    load_base,
    load_tokenizer,
    lora_parameters,
    moments_from_tensors,
    moments_of,
    moments_to_tensors,
)

CPU = torch.device("cpu")


@pytest.fixture
def tuned(tiny_model):
    """The bundled model with a new adapter."""

    def make(seed=0, **settings):
        base = load_base(ModelSettings(model=tiny_model), CPU)
        return add_adapter(base, LoraSettings(**({"lora_r": 4} | settings)), seed)

    return make


def weights(model):
    return {name: p.detach().clone() for name, p in lora_parameters(model).items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def trained(model):
    """AdamW after two steps that reach every LoRA parameter."""
    parameters = lora_parameters(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    for step in range(2):
        for number, parameter in enumerate(parameters.values()):
            parameter.grad = torch.full_like(parameter, 0.1 + number + step)
        optimizer.step()
    return optimizer


def test_an_adapters_weights_depend_on_the_seed_alone(tuned):
    first = weights(tuned(seed=3))
    torch.rand(7)
    assert same(weights(tuned(seed=3)), first)
    assert not same(weights(tuned(seed=4)), first)


def test_an_adapter_is_put_on_every_named_module_and_no_other(tuned):
    names = weights(tuned(lora_targets=("q_proj", "down_proj")))
    assert {name.split(".")[-3] for name in names} == {"q_proj", "down_proj"}
    layers = tuned().config.num_hidden_layers
    assert len(names) == layers * 2 * 2  # modules, A and B


def test_all_linear_reaches_every_linear_of_the_layers(tuned):
    names = weights(tuned(lora_targets=("all-linear",)))
    assert {name.split(".")[-3] for name in names} >= {"q_proj", "o_proj", "up_proj", "down_proj"}


def test_a_saved_adapter_is_loaded_as_it_was(tuned, tiny_model, tmp_path):
    model = tuned()
    trained(model)
    model.save_pretrained(tmp_path)
    base = load_base(ModelSettings(model=tiny_model), CPU)
    assert same(weights(load_adapter(base, tmp_path)), weights(model))


@pytest.mark.parametrize("targets", [("nope",), ("q_proj", "nope"), ("nope", "all-linear")])
def test_a_name_that_fits_no_module_is_refused_with_those_there_are(targets, tuned):
    with pytest.raises(SettingError, match=r"^lora_targets .*nope") as refusal:
        tuned(lora_targets=targets)
    assert "down_proj" in str(refusal.value)
    assert "q_proj" in str(refusal.value)


def test_a_module_that_can_have_no_adapter_is_refused(tuned):
    with pytest.raises(SettingError, match=r"^lora_targets input_layernorm do not fit"):
        tuned(lora_targets=("input_layernorm",))


def test_moments_survive_their_file(tuned):
    model = tuned()
    optimizer = trained(model)
    data = save(moments_to_tensors(moments_of(model, optimizer)))
    found = moments_from_tensors(load(data), tuned(seed=1))
    assert found.keys() == lora_parameters(model).keys()
    for name, parameter in lora_parameters(model).items():
        state = optimizer.state[parameter]
        assert torch.equal(found[name][0], state["exp_avg"])
        assert torch.equal(found[name][1], state["exp_avg_sq"])
        assert found[name][0].dtype == torch.float32


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"lora_r": 8}, r"have shape \[4, \d+\], but the adapter's parameter has \[8, \d+\]"),
        ({"lora_targets": ("q_proj", "up_proj")}, r"lack the adapter's parameter .*up_proj"),
    ],
    ids=["another rank", "other modules"],
)
def test_moments_of_another_adapter_are_refused_by_parameter(other, problem, tuned):
    model = tuned(lora_targets=("q_proj",))
    flat = moments_to_tensors(moments_of(model, trained(model)))
    with pytest.raises(InputError, match=problem) as refusal:
        moments_from_tensors(flat, tuned(**({"lora_targets": ("q_proj",)} | other)))
    assert "layers.0.self_attn.q_proj.lora_A" in str(refusal.value) or "lack" in problem


@pytest.mark.parametrize("lost", ["exp_avg", "exp_avg_sq"])
def test_a_missing_moment_is_named(lost, tuned):
    model = tuned()
    flat = moments_to_tensors(moments_of(model, trained(model)))
    name = next(iter(lora_parameters(model)))
    del flat[f"{lost}.{name}"]
    with pytest.raises(InputError, match=name):
        moments_from_tensors(flat, model)


BROKEN = {
    "missing": lambda folder: shutil.rmtree(folder),
    "without config": lambda folder: (folder / "config.json").unlink(),
    "without weights": lambda folder: (folder / "model.safetensors").unlink(),
    "with truncated weights": lambda folder: (folder / "model.safetensors").write_bytes(b"\x10"),
    "with another architecture": lambda folder: (folder / "config.json").write_text(
        '{"model_type": "no-such-architecture"}'
    ),
}


@pytest.mark.parametrize("breaking", BROKEN.values(), ids=BROKEN)
def test_a_model_that_cannot_be_loaded_is_named(breaking, tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    breaking(folder)
    with pytest.raises(InputError) as refusal:
        load_base(ModelSettings(model=str(folder)), CPU)
    assert str(refusal.value).startswith(f"model {folder}")
    assert "\n" not in str(refusal.value)


def test_a_model_that_is_nowhere_is_named():
    with pytest.raises(InputError, match=r"^model nobody/nothing cannot be loaded"):
        load_base(ModelSettings(model="nobody/nothing"), CPU)


def test_a_tokenizer_can_always_pad(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = load_tokenizer(ModelSettings(model=tiny_model))
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    found = load_tokenizer(ModelSettings(model=str(tmp_path / "model")))
    assert found.pad_token_id is not None


@pytest.mark.parametrize(
    ("setting", "device", "wanted"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_the_number_type_follows_setting_and_device(setting, device, wanted):
    settings = ModelSettings(model="any", dtype=setting)
    assert base_dtype(settings, torch.device(device)) == wanted


def test_quantization_without_bitsandbytes_is_refused_with_what_to_install(tiny_model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"^quantization 4bit .* pip install bitsandbytes"):
        load_base(ModelSettings(model=tiny_model, quantization="4bit"), CPU)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_kernel_is_the_one_asked_for(attention, tiny_model):
    model = load_base(ModelSettings(model=tiny_model), CPU, attention)
    assert model.config._attn_implementation == attention


def test_the_base_has_the_number_type_asked_for(tiny_model):
    model = load_base(ModelSettings(model=tiny_model, dtype="bfloat16"), CPU)
    assert model.dtype == torch.bfloat16
    assert not model.training
