"""Selectors by name: those that come with g2is-ray, and a user's own."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from g2is_ray.config import WALK, GraphSettings, is_own
from g2is_ray.errors import InputError
from g2is_ray.selector.gradient import Gist, Less, LessRoundRobin, Rds
from g2is_ray.selector.graph import FacilityLocation, GraphDiverse
from g2is_ray.selector.interface import Choice, Pool, Reads, Selector, Target
from g2is_ray.selector.lexical import Bm25, Tfidf

log = logging.getLogger(__name__)


class Random(Selector):
    """Rows drawn at random."""

    reads = frozenset({"seed"})
    step = "random"

    def picks(self, pool: Pool, target: Target, products: NDArray[np.float32]) -> Iterator[Choice]:
        rng = np.random.default_rng([pool.seed, 1])  # not the warm-up's draw
        return ((row, np.nan) for row in rng.permutation(np.flatnonzero(pool.free)).tolist())


_CLASSES: dict[str, type[Selector]] = {
    "random": Random,
    "less": Less,
    "less-round-robin": LessRoundRobin,
    "gist": Gist,
    "graph-diverse": GraphDiverse,
    "facility-location": FacilityLocation,
    "rds": Rds,
    "tfidf": Tfidf,
    "bm25": Bm25,
}


def find(name: str) -> type[Selector]:
    """The class of a selector other than the walk. Runs the code of a user's own.

    Raises:
        InputError: there is no such file, module or class, or it cannot be used.
    """
    return _load(name) if is_own(name) else _CLASSES[name]


_GIVEN: dict[str, type[Selector]] = {}
"""Classes that a Python program gave as such, by the name that a setting has for them."""


def name_of(selector: type[Selector]) -> str:
    """The name MODULE:CLASS of a class, which is found under it from now on."""
    name = f"{selector.__module__}:{selector.__name__}"
    _GIVEN[name] = selector
    return name


def reads_of(name: str) -> frozenset[Reads]:
    """What a selector reads; a user's own, whose code is not run for this, all but embeddings."""
    if is_own(name):
        return frozenset({"gradients", "graph", "texts", "tokens", "seed"})
    return frozenset({"gradients", "graph"}) if name == WALK else _CLASSES[name].reads


def graph_read(reads: Collection[Reads], settings: GraphSettings) -> GraphSettings:
    """Features, and the graph of them, for a selector that reads so much, of those in force."""
    if "embeddings" in reads:
        return dataclasses.replace(settings, features="embeddings", center=False)
    return settings


def reads_features(reads: Collection[Reads]) -> bool:
    """Whether the features of pool and target are read."""
    return "gradients" in reads or "embeddings" in reads


def needs_graph(reads: Collection[Reads], settings: GraphSettings) -> bool:
    """Whether the graph is read, or the mean that is written with it."""
    return "graph" in reads or ("gradients" in reads and settings.center)


def source_hash(selector: type[Selector]) -> str:
    """SHA-256 of the file that holds a user's selector, or of its methods in a notebook.

    Changes of modules that the selector imports are not noticed.

    Raises:
        InputError: the source is not known.
    """
    with contextlib.suppress(OSError, TypeError):
        return hashlib.sha256(Path(inspect.getfile(selector)).read_bytes()).hexdigest()
    try:  # the class has no file
        methods = [one for one in vars(selector).values() if inspect.isfunction(one)]
        text = "".join(inspect.getsource(one) for one in methods)
    except (OSError, TypeError):
        raise InputError(
            f"selector {selector.__name__}: its source code is not known, so later changes could "
            "not be noticed: define the class in a file or a notebook"
        ) from None
    return hashlib.sha256(f"{sorted(selector.reads)}{selector.step}{text}".encode()).hexdigest()


def _load(name: str) -> type[Selector]:
    place, _, class_name = name.rpartition(":")
    found = _GIVEN[name] if name in _GIVEN else getattr(_module(name, place), class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Selector)):
        raise InputError(
            f"selector {name}: {place} has no class {class_name} that derives from "
            "g2is_ray.selector.interface.Selector"
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
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise InputError(f"selector {name}: {class_name} does not define {missing}")
    return found


def _module(selector: str, place: str) -> ModuleType:
    log.warning("selector %s: runs the code of %s", selector, place)
    try:
        return _file_module(place) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"selector {selector}: {place} cannot be imported: {why}") from error


def _file_module(path: str) -> ModuleType:
    """The module that a file holds, under a name that no other module has."""
    name = re.sub(r"\W", "_", str(Path(path).resolve()))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses and inspect.getfile expect
    spec.loader.exec_module(module)
    return module
