"""The registry: one line for each selector, from which help and documentation are made."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from selection_workspace import make_workspace

from g2is_ray.config import as_dict, build
from g2is_ray.errors import InputError, SettingError
from g2is_ray.selector.interface import Selector, best_first
from g2is_ray.selector.methods import BaselineSettings, SelectorSettings, parse_method
from g2is_ray.selector.registry import NAMES, SELECTORS, find, reads_of, source_hash, table
from jobs.selection import select_rows
from jobs.session import Session

REPOSITORY = Path(__file__).parents[2]
MARKED = re.compile(r"<!-- selectors -->\n(.*?)<!-- selectors -->", re.DOTALL)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_class_with_a_phrase_about_it(name):
    assert issubclass(find(name), Selector)
    assert reads_of(name) == find(name).reads
    assert SELECTORS[name].picks


def test_the_documentation_holds_the_registrys_table():
    found = {}
    for page in (REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")):
        if match := MARKED.search(page.read_text(encoding="utf-8")):
            found[page.name] = match[1]
    assert "selectors.md" in found
    assert {text.strip() for text in found.values()} == {table().strip()}


@pytest.mark.parametrize("cls", [SelectorSettings, BaselineSettings])
def test_help_names_every_selector(cls):
    field = {SelectorSettings: "selector", BaselineSettings: "baselines"}[cls]
    description = cls.__pydantic_fields__[field].description
    assert not [name for name in NAMES if f"{name}," not in description and name not in description]


def test_naming_selectors_loads_none_of_them():
    script = (
        "import sys, g2is_ray.selector.methods as m; m.parse_method('walk'); "
        "print(sorted({'torch', 'ray', 'transformers', 'sklearn', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# ---- a selector given as a class -------------------------------------------------------


class Shortest(Selector):
    """Rows with the fewest supervised tokens."""

    reads = frozenset({"tokens"})
    step = "length"

    def picks(self, pool, target, products):
        return best_first(-pool.tokens, pool.free)


class Nothing(Selector):
    """Defines neither picks nor select."""


def test_a_class_is_a_method_of_its_name():
    method = parse_method(Shortest)
    assert (method.name, method.selector) == ("Shortest", Shortest)
    assert find(Shortest) is Shortest
    settings = build(SelectorSettings, {"selector": Shortest})
    assert as_dict(settings)["selector"] == f"{__name__}:Shortest"


def test_a_class_that_cannot_select_is_refused():
    with pytest.raises(InputError, match=r"^selector .*:Nothing: Nothing does not define picks"):
        find(Nothing)
    with pytest.raises(SettingError, match=r"^selector "):
        build(SelectorSettings, {"selector": dict})


@pytest.mark.parametrize("role", ["selector", "baseline"])
def test_a_class_selects_and_its_file_is_in_the_fingerprint(role, tmp_path, caplog):
    held = make_workspace(tmp_path / "ws")
    given = {"target": {"law": "v"}, "fraction": 0.2}
    given |= (
        {"selector": Shortest, "baselines": []}
        if role == "selector"
        else {"selector": "random", "baselines": [Shortest]}
    )
    stage = "selections/law" if role == "selector" else "selections/law@Shortest"
    session = Session(held.storage.location(""), given)
    select_rows(session)
    picks = list(map(json.loads, held.storage.read_bytes(f"{stage}/selection.jsonl").splitlines()))
    scores = [pick["similarity"] for pick in picks]
    assert len(picks) == 48
    assert scores == sorted(scores, reverse=True)
    assert not np.isnan(scores).any()
    settings = held.stages()[stage]["settings"]
    assert settings["selector"] == "Shortest"
    assert settings["source_sha256"] == source_hash(Shortest)
    with caplog.at_level(logging.INFO):
        select_rows(session)
    assert f"{stage}: already done" in caplog.text
    if role == "selector":  # a command that does not name the class does not run its code
        with pytest.raises(SettingError, match="the workspace names the selector"):
            select_rows(Session(held.storage.location(""), {"target": {"law": "v"}}))


def test_a_class_without_a_readable_source_is_refused():
    names: dict = {"Selector": Selector}
    exec("class Lost(Selector):\n    def picks(self, pool, target, products): ...", names)
    lost = names["Lost"]
    lost.__module__ = "__main__"
    lost.picks.__code__ = lost.picks.__code__.replace(co_filename="<nowhere>")
    module = sys.modules["__main__"]
    file, module.__file__ = getattr(module, "__file__", None), None
    try:
        with pytest.raises(InputError, match="its source cannot be read"):
            source_hash(lost)
    finally:
        module.__file__ = file
