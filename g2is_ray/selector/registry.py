"""Selectors by name: the table of those that come with g2is-ray, and classes of a user's own.

To add a selector, write its class in a file of this folder and add one line to `SELECTORS`. The
help texts, the error messages and the table in the documentation are made from that line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import logging
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import get_args

from g2is_ray.config import WALK, GraphSettings
from g2is_ray.errors import InputError
from g2is_ray.selector.interface import Reads, Selector

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A selector that comes with g2is-ray."""

    place: str
    """The class as module:class below `g2is_ray.selector`; imported when it is needed."""
    picks: str
    """Phrase for help and documentation: which rows the selector picks."""

    @property
    def selector(self) -> type[Selector]:
        module, _, name = self.place.partition(":")
        found: type[Selector] = getattr(
            importlib.import_module(f"g2is_ray.selector.{module}"), name
        )
        return found


SELECTORS = {
    "facility-location": Entry(
        "graph:FacilityLocation",
        "rows that together cover the target and, over the graph, what is relevant to it (default)",
    ),
    WALK: Entry(
        "walking:GradientWalk",
        "the gradient walk with better settings; `paper` names the walk as published",
    ),
    "random": Entry("random_rows:Random", "rows drawn at random"),
    "less": Entry(
        "gradient:Less",
        "largest cosine to the target's gradients: subtask means, then maximum (LESS)",
    ),
    "less-round-robin": Entry(
        "gradient:LessRoundRobin",
        "for each target row in turn, the largest cosine",
    ),
    "gist": Entry(
        "gradient:Gist",
        "largest cosine in the whitened subspace of the target's gradients (GIST)",
    ),
    "graph-diverse": Entry(
        "graph:GraphDiverse", "as `less`, without graph neighbors of earlier picks"
    ),
    "rds": Entry("gradient:Rds", "as `less-round-robin`, by embeddings (RDS+)"),
    "tfidf": Entry(
        "lexical:Tfidf", "for each target row in turn, the most similar words by TF-IDF"
    ),
    "bm25": Entry("lexical:Bm25", "for each target row in turn, the most similar words by BM25"),
}
"""The one list of selectors."""

NAMES = tuple(SELECTORS)

_OWN_SELECTOR = re.compile(r"[^:=,]+:[A-Za-z_]\w*")


def is_own(selector: str) -> bool:
    """Return whether the text names a user's class, as FILE.py:CLASS or MODULE:CLASS."""
    return _OWN_SELECTOR.fullmatch(selector) is not None


def table() -> str:
    """The selectors as a Markdown table, for the documentation."""
    lines = ["| selector | picks | reads |", "| --- | --- | --- |"]
    for name, entry in SELECTORS.items():
        reads = [one for one in get_args(Reads) if one in entry.selector.reads]
        lines.append(f"| `{name}` | {entry.picks} | {', '.join(reads)} |")
    return "\n".join(lines) + "\n"


def find(selector: str | type[Selector]) -> type[Selector]:
    """The class of a selector, given by name or as a class. Runs the code of a user's own file.

    Raises:
        InputError: there is no such file, module or class, or it cannot be used.
    """
    if isinstance(selector, type):
        _check(selector, place_of(selector))
        return selector
    return _load(selector) if is_own(selector) else SELECTORS[selector].selector


def place_of(selector: type) -> str:
    """Name of a class as MODULE:CLASS."""
    return f"{selector.__module__}:{selector.__qualname__}"


def reads_of(name: str | type[Selector]) -> frozenset[Reads]:
    """What a selector reads; for a user's file, whose code is not run here, all but embeddings."""
    if isinstance(name, type):
        return name.reads
    if is_own(name):
        return frozenset({"gradients", "graph", "texts", "tokens", "seed"})
    return SELECTORS[name].selector.reads


def graph_read(reads: Collection[Reads], settings: GraphSettings) -> GraphSettings:
    """The features, and the graph of them, that a selector with these `reads` is given."""
    if "embeddings" in reads:
        return dataclasses.replace(settings, features="embeddings", center=False)
    return settings


def reads_features(reads: Collection[Reads]) -> bool:
    """Return whether the features of pool and target are read."""
    return "gradients" in reads or "embeddings" in reads


def is_built_in(selector: type[Selector]) -> bool:
    return selector.__module__.partition(".")[0] == "g2is_ray"


def source_hash(selector: type[Selector]) -> str:
    """SHA-256 of the file that holds a user's selector; files that it imports do not count.

    A class from a notebook is hashed by the cell that defines its `picks` or `select`.

    Raises:
        InputError: the source of the class cannot be read.
    """
    try:
        data = Path(inspect.getfile(selector)).read_bytes()
    except (OSError, TypeError):
        method = next(
            getattr(selector, name) for name in ("picks", "select") if name in vars(selector)
        )
        data = "".join(linecache.getlines(method.__code__.co_filename)).encode()
    if not data:
        raise InputError(
            f"selector {place_of(selector)}: its source cannot be read, so a change of it would go "
            "unnoticed; define the class in a file"
        )
    return hashlib.sha256(data).hexdigest()


def _load(name: str) -> type[Selector]:
    place, _, class_name = name.rpartition(":")
    found = getattr(_module(name, place), class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Selector)):
        raise InputError(
            f"selector {name}: {place} has no class {class_name} that derives from "
            "g2is_ray.selector.interface.Selector"
        )
    _check(found, name)
    return found


def _check(found: type, name: str) -> None:
    """Refuse a class that cannot select."""
    if not issubclass(found, Selector):
        raise InputError(
            f"selector {name}: it does not derive from g2is_ray.selector.interface.Selector"
        )
    if unknown := sorted(found.reads - set(get_args(Reads))):
        raise InputError(
            f"selector {name}: reads may hold {', '.join(get_args(Reads))}, got {unknown[0]}"
        )
    if {"gradients", "embeddings"} <= found.reads:
        raise InputError(
            f"selector {name}: reads may hold gradients or embeddings, not both, since one kind of "
            "features is multiplied with its directions"
        )
    if found.picks is Selector.picks and found.select is Selector.select:
        raise InputError(
            f"selector {name}: {found.__name__} does not define picks (or select); see "
            "g2is_ray.selector.interface.Selector"
        )


def _module(selector: str, place: str) -> ModuleType:
    log.warning("selector %s: runs the code of %s", selector, place)
    try:
        return _file_module(place) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"selector {selector}: {place} cannot be imported: {why}") from error


def _file_module(path: str) -> ModuleType:
    """The module in a file, under a name that no other module has."""
    name = re.sub(r"\W", "_", str(Path(path).resolve()))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the path ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses and inspect.getfile expect
    spec.loader.exec_module(module)
    return module
