"""Methods: what a text names, and what is refused."""

import re

import pytest

from g2is_ray.config import PRESETS, GraphSettings, WalkSettings
from g2is_ray.errors import SettingError
from g2is_ray.selector.methods import Method, methods_of, parse_method
from g2is_ray.selector.registry import NAMES

PUBLISHED = {name: value for name, value in PRESETS["paper"].items() if name != "selector"}


@pytest.mark.parametrize("name", NAMES)
def test_a_selector_is_a_method_of_its_own_name(name):
    assert parse_method(name) == Method(name=name, selector=name)


@pytest.mark.parametrize(
    ("text", "name", "selector", "settings"),
    [
        ("paper", "paper", "walk", PUBLISHED),
        ("a/b.py:Near", "Near", "a/b.py:Near", {}),
        ("near=package.module:Near", "near", "package.module:Near", {}),
        ("loose=walk,delta=0.5,pca=centered", "loose", "walk", {"delta": "0.5", "pca": "centered"}),
        (" a = less , subtask-field = kind ", "a", "less", {"subtask_field": "kind"}),
        ("c=paper,center=yes", "c", "walk", PUBLISHED | {"center": "yes"}),
    ],
)
def test_a_text_names_a_method(text, name, selector, settings):
    assert parse_method(text) == Method(name=name, selector=selector, settings=settings)


def test_settings_of_a_method_take_the_place_of_the_commands():
    method = parse_method("loose=walk,delta=0.5,center=no")
    assert method.applied(WalkSettings(within=0.2)) == WalkSettings(within=0.2, delta=0.5)
    assert method.applied(GraphSettings(neighbors=7)) == GraphSettings(neighbors=7, center=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lss", "should be paper, facility-location, walk, "),
        ("", "should be paper, facility-location, walk, "),
        ("x=", "should be paper, facility-location, walk, "),
        ("walk,delta=0.5", "should begin with a name of its own, as in NAME=walk,delta=0.5"),
        ("x=walk,delta=2", "names a wrong value: delta should be less than or equal to 1"),
        ("x=walk,delta", "names a wrong value: delta should be a valid number"),
        ("x=walk,fraction=0.1", "names 'fraction=0.1': walk has the settings center, "),
        ("x=less,delta=0.5", "names 'delta=0.5': less has the settings center, "),
        ("less=random", "should have a name of letters"),
        ("base=random", "should have a name of letters"),
        ("a/b=random", "should have a name of letters"),
    ],
)
def test_what_names_no_method_is_refused(text, reason):
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}"):
        parse_method(text)


def test_one_method_named_twice_is_one_and_two_of_one_name_are_refused():
    assert [method.name for method in methods_of("methods", ["less", "random", "less"])] == [
        "less",
        "random",
    ]
    with pytest.raises(SettingError, match=r"^methods x=less and x=gist would both be called x"):
        methods_of("methods", ["x=less", "x=gist"])
