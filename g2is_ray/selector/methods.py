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
from pydantic import AfterValidator, BeforeValidator, Field

from g2is_ray.config import (
    PAPER,
    PRESETS,
    STRICT,
    GraphSettings,
    Text,
    build,
    check,
    fields_of,
)
from g2is_ray.errors import SettingError
from g2is_ray.selector.interface import Selector
from g2is_ray.selector.registry import NAMES, SELECTORS, is_own, place_of
from g2is_ray.workspace.layout import BASE, JOINT, NAME

T = TypeVar("T")

_RESERVED = (BASE, "selection", JOINT)  # scores have these names
_OWN = "FILE.py:CLASS"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A selector, its name, and its settings."""

    name: str  # empty for the selection itself
    selector: str | type[Selector]  # a name of the registry, or a user's class or its place
    settings: Mapping[str, Any] = field(default_factory=dict)  # these override the command's

    def applied(self, settings: T) -> T:
        """Settings of graph or selector, some of them overridden by the method's own."""
        names = fields_of([type(settings)])
        own = {name: self.settings[name] for name in names & self.settings.keys()}
        return build(type(settings), {name: getattr(settings, name) for name in names} | own)


def short_name(selector: str | type[Selector]) -> str:
    """Name of a selector in the workspace: its own, or that of a user's class."""
    return selector.rpartition(":")[2] if isinstance(selector, str) else selector.__name__


def parse_method(text: str | type[Selector]) -> Method:
    """The method that a text such as `loose=walk,delta=0.5` names, or that a class makes.

    Raises:
        ValueError: there is no such selector or setting, or a value is wrong.
    """
    if not isinstance(text, str):
        return Method(name=_checked_name(text.__name__, text), selector=text)
    first, *rest = text.split(",")
    given, _, selector = (part.strip() for part in first.rpartition("="))
    if selector not in (PAPER, *NAMES) and not is_own(selector):
        known = ", ".join((PAPER, *NAMES))
        raise ValueError(
            f"should be {known}, {_OWN} for one of your own, or any of these as "
            "NAME=SELECTOR,SETTING=VALUE"
        )
    if rest and not given:
        raise ValueError(f"should begin with a name of its own, as in NAME={text}")
    name = _checked_name(given or short_name(selector), selector)
    settings = dict(PRESETS[PAPER]) if selector == PAPER else {}
    selector = settings.pop("selector", selector)
    return Method(name=name, selector=selector, settings=settings | _settings(selector, rest))


def _checked_name(name: str, selector: str | type[Selector]) -> str:
    taken = name in (PAPER, *NAMES) and name != selector
    if not NAME.fullmatch(name) or name in _RESERVED or taken:
        raise ValueError(
            "should have a name of letters, digits, '.', '_' and '-' that is not another's"
        )
    return name


def _settings(selector: str, parts: list[str]) -> dict[str, str]:
    if not parts:
        return {}
    own = None if is_own(selector) else SELECTORS[selector].selector.settings_class
    allowed = {"features", "center", *(fields_of([own]) if own else ["subtask_field"])}
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
        check((GraphSettings, SelectorSettings, *([own] if own else [])), settings)
    except SettingError as error:
        raise ValueError(f"names a wrong value: {error}") from None
    return settings


def methods_of(setting: str, texts: Iterable[str | type[Selector]]) -> list[Method]:
    """The methods of a setting, each once.

    Raises:
        SettingError: two methods that differ have one name.
    """
    named: dict[str, str | type[Selector]] = {}
    for text in texts:
        name = parse_method(text).name
        if named.setdefault(name, text) != text:
            one, other = (t if isinstance(t, str) else place_of(t) for t in (named[name], text))
            raise SettingError(
                f"{setting} {one} and {other} would both be called {name}: write one of them as "
                f"NAME={other}"
            )
    return [parse_method(text) for text in named.values()]


def _check_method(text: str | type[Selector]) -> str | type[Selector]:
    parse_method(text)
    return text


def _check_selector(name: str | type[Selector]) -> str | type[Selector]:
    if isinstance(name, type) or name in NAMES or is_own(name):
        return name
    raise ValueError(f"should be {', '.join(NAMES)}, or {_OWN} for one of your own")


def _check_distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("should each be given once")
    return seeds


def _check_class(value: object) -> object:
    if isinstance(value, type) and not issubclass(value, Selector):
        raise ValueError("should derive from g2is_ray.Selector if it is a class")
    return value


_NameOrClass = Annotated[str | type[Selector], BeforeValidator(_check_class)]
SelectorName = Annotated[_NameOrClass, AfterValidator(_check_selector)]
MethodText = Annotated[_NameOrClass, AfterValidator(_check_method)]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class SelectorSettings:
    """Selection"""

    selector: SelectorName = Field(
        default=NAMES[0],
        description=f"Selector of the rows: {', '.join(NAMES)}; or a class of your own as {_OWN} "
        "or MODULE:CLASS, whose code is run.",
    )
    allow_overlap: bool = False
    """Select rows of the pool that are like test rows, too; test losses then measure what the model
    has memorized. Otherwise such rows are left out; `g2is ingest` lists them."""
    subtask_field: Text = "subtask"
    """Column of the target's rows that names a row's subtask. Selectors that compare rows with a
    target take the mean within a subtask and the maximum over subtasks. A target without this
    column is one subtask."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class BaselineSettings:
    """Baselines"""

    baselines: tuple[MethodText, ...] = Field(
        default=("random",),
        description=f"Methods to compare the selection with: {PAPER}, the walk as published; "
        f"{', '.join(NAMES)}; {_OWN}; or NAME=SELECTOR,SETTING=VALUE,… with settings of its own "
        "for graph and selector. Each is selected, tuned and measured in the same way; all but "
        "walks spend as much as the selection did.",
    )


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
