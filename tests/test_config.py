"""Settings: a wrong value dies when it is given, in one sentence that names it."""

import dataclasses
import json

import pytest

from g2is_ray import config
from g2is_ray.config import (
    PRESETS,
    BudgetSettings,
    ExecutionSettings,
    GraphSettings,
    ModelSettings,
    PoolSettings,
    WalkSettings,
    as_dict,
    build,
    check,
    fields_of,
    flag,
)
from g2is_ray.errors import SettingError
from g2is_ray.selector import methods

OWNERS = {**vars(config), **vars(methods)}
STAGES = [cls for name, cls in OWNERS.items() if name.endswith("Settings")]
PRESET_OF = (methods.SelectorSettings, GraphSettings, WalkSettings)
REQUIRED = {"model": "m", "pool": ["p.jsonl"]}


@pytest.mark.parametrize("cls", STAGES)
def test_defaults_are_allowed_values(cls):
    built = build(cls, REQUIRED)
    assert build(cls, as_dict(built)) == built


def test_every_setting_has_a_help_text():
    assert not [name for name, field in fields_of(STAGES).items() if not field.description]


def test_no_two_stages_have_a_setting_of_the_same_name():
    names = [name for cls in STAGES for name in fields_of([cls])]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("cls", STAGES)
def test_settings_cannot_be_changed(cls):
    built = build(cls, REQUIRED)
    name = dataclasses.fields(cls)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(built, name, getattr(built, name))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fraction", 0),
        ("fraction", -0.1),
        ("fraction", 1.01),
        ("fraction", float("nan")),
        ("fraction", "a tenth"),
        ("fraction", True),
        ("delta", -0.1),
        ("delta", 1.1),
        ("delta", float("nan")),
        ("explained_variance", 0),
        ("neighbors", 0),
        ("neighbors", 1.5),
        ("neighbors", True),
        ("neighbors", None),
        ("pca", "kernel"),
        ("orient", "maybe"),
        ("max_rejected", 2),
        ("max_tokens", 0),
        ("part_rows", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("tune_learning_rate", float("inf")),
        ("warmup_learning_rate", 0),
        ("lora_dropout", 1),
        ("lora_targets", ()),
        ("lora_targets", {"q_proj": 1}),
        ("projection_dim", 1),
        ("dtype", "int8"),
        ("target", "val.jsonl"),
        ("target", None),
        ("target", {"a": None}),
        ("target", {1: "val.jsonl"}),
        ("pool", []),
        ("pool", [3]),
        ("model", ""),
        ("model", 3),
        ("baselines", ("paper", "other")),
        ("report_to", ("diary",)),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, value):
    (owner,) = (cls for cls in STAGES if name in fields_of([cls]))
    for refuse in (
        lambda: build(owner, REQUIRED | {name: value}),
        lambda: check(STAGES, {name: value}),
    ):
        with pytest.raises(SettingError) as refusal:
            refuse()
        assert str(refusal.value).startswith(f"{name} should ")
        assert "got " in str(refusal.value)
        assert str(refusal.value).endswith(fields_of([owner])[name].description)


@pytest.mark.parametrize(
    ("cls", "name"), [(ModelSettings, "model"), (PoolSettings, "pool")], ids=["model", "pool"]
)
def test_a_missing_value_is_asked_for_by_name(cls, name):
    with pytest.raises(SettingError, match=f"^{name} is not set: "):
        build(cls, {})


def test_checking_early_does_not_ask_for_what_may_come_later():
    check(STAGES, {"fraction": 0.5})


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1.0), ("0.01", 0.01), ("2e-2", 0.02), (1, 1.0)], ids=str
)
def test_numbers_may_be_texts_as_flags_give_them(text, value):
    assert build(BudgetSettings, {"fraction": text}).fraction == value


def test_values_of_other_stages_are_passed_over():
    assert build(GraphSettings, {"neighbors": 3, "fraction": 9}) == GraphSettings(neighbors=3)


def test_settings_survive_json():
    settings = as_dict(ExecutionSettings(report_to=("wandb",)), ModelSettings(model="m"))
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_set_the_same_settings_to_allowed_values(preset):
    values = PRESETS[preset]
    assert values.keys() == PRESETS["paper"].keys()
    built = as_dict(*(build(cls, values) for cls in PRESET_OF))
    assert {name: built[name] for name in values} == values


def test_the_recommended_preset_is_the_default():
    defaults = as_dict(*(cls() for cls in PRESET_OF))
    assert {name: defaults[name] for name in PRESETS["recommended"]} == PRESETS["recommended"]


def test_a_flag_is_the_settings_name():
    assert flag("max_tokens") == "--max-tokens"
