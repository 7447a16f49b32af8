"""Methods: a selector under a name, with settings of its own.

random                       a selector, under its own name
paper                        the walk as published
near=own.py:Nearest          one of your own
loose=walk,delta=0.5         settings in place of the command's
centered=paper,center=yes    the same for the walk as published
other=less,features=embeddings   a selector on embeddings in place of gradients
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import AfterValidator, Field

from g2is_ray.config import (
    PAPER,
    PRESETS,
    SELECTORS,
    STRICT,
    WALK,
    GraphSettings,
    SelectorSettings,
    WalkSettings,
    as_dict,
    build,
    check,
    fields_of,
    is_own,
)
from g2is_ray.errors import SettingError
from g2is_ray.workspace.layout import BASE, JOINT, NAME

T = TypeVar("T")

_RESERVED = (BASE, "selection", JOINT)  # scores have these names
_FOR_ALL = {"features", "center", "subtask_field"}
_FOR_WALKS = {"features", "center", *fields_of([WalkSettings])} - {"fraction"}


@dataclass(frozen=True, kw_only=True)
class Method:
    """What selects, and how."""

    name: str  # empty for the selection itself
    selector: str  # walk, one of the others, or a user's own
    settings: Mapping[str, Any] = field(default_factory=dict)  # in place of the command's

    def applied(self, settings: T) -> T:
        """Settings of graph, walk or selector, with the method's own in place of some."""
        own = {
            name: self.settings[name] for name in fields_of([type(settings)]) & self.settings.keys()
        }
        return build(type(settings), as_dict(settings) | own)


def short_name(selector: str) -> str:
    """What a selector is called in the workspace: its name, or that of a user's class."""
    return selector.rpartition(":")[2]


def parse_method(text: str) -> Method:
    """The method that a text such as `loose=walk,delta=0.5` names.

    Raises:
        ValueError: there is no such selector or setting, or a value is wrong.
    """
    first, *rest = text.split(",")
    given, _, selector = (part.strip() for part in first.rpartition("="))
    if selector not in (PAPER, *SELECTORS) and not is_own(selector):
        known = ", ".join((PAPER, *SELECTORS))
        raise ValueError(
            f"should be {known}, FILE.py:CLASS for one of your own, or any of these as "
            "NAME=SELECTOR,SETTING=VALUE"
        )
    if rest and not given:
        raise ValueError(f"should begin with a name of its own, as in NAME={text}")
    name = given or short_name(selector)
    taken = name in (PAPER, *SELECTORS) and name != selector
    if not NAME.fullmatch(name) or name in _RESERVED or taken:
        raise ValueError(
            "should have a name of letters, digits, '.', '_' and '-' that is not another's"
        )
    settings = dict(PRESETS[PAPER]) if selector == PAPER else {}
    selector = settings.pop("selector", selector)
    return Method(name=name, selector=selector, settings=settings | _settings(selector, rest))


def _settings(selector: str, parts: Iterable[str]) -> dict[str, str]:
    allowed = _FOR_WALKS if selector == WALK else _FOR_ALL
    settings = {}
    for part in parts:
        name, _, value = (piece.strip() for piece in part.partition("="))
        name = name.replace("-", "_")
        if name not in allowed:
            raise ValueError(
                f"names {part!r}: {selector} has the settings {', '.join(sorted(allowed))}"
            )
        settings[name] = value
    try:
        check((GraphSettings, WalkSettings, SelectorSettings), settings)
    except SettingError as error:
        raise ValueError(f"names a wrong value: {error}") from None
    return settings


def methods_of(setting: str, texts: Iterable[str]) -> list[Method]:
    """The methods of a setting, each once.

    Raises:
        SettingError: two that differ have one name.
    """
    named: dict[str, str] = {}
    for text in texts:
        name = parse_method(text).name
        if named.setdefault(name, text) != text:
            raise SettingError(
                f"{setting} {named[name]} and {text} would both be called {name}: write one of "
                f"them as NAME={text}"
            )
    return [parse_method(text) for text in named.values()]


def _check_method(text: str) -> str:
    parse_method(text)
    return text


def _check_distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("should each be given once")
    return seeds


MethodText = Annotated[str, AfterValidator(_check_method)]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class ComparisonSettings:
    """Baselines"""

    baselines: tuple[MethodText, ...] = ("random",)
    """Baselines to compare the selection with: paper, which is the walk as published; any selector;
    or NAME=SELECTOR,SETTING=VALUE,… with other settings of graph and walk. Each baseline is
    selected, tuned and measured like the selection; all except walks spend as much as it."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class CompareSettings:
    """Comparison"""

    methods: Annotated[tuple[MethodText, ...], Field(min_length=1)] = (
        "random",
        "tfidf",
        "less",
        "facility-location",
        "walk",
        "paper",
    )
    """Methods to compare, each written as for baselines. All spend the same number of supervised
    tokens in the same number of optimizer steps."""
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**32)], ...],
        Field(min_length=1),
        AfterValidator(_check_distinct),
    ] = (0, 1, 2)
    """Seeds to tune each method with. A seed decides the adapter's initial weights, the order of
    the rows, and the rows that random draws. Time grows with the number of seeds."""
    reference: str = "random"
    """Method that all other methods are compared with."""
