"""g2is-ray's library: arithmetic and files, without Ray.

Names of the Python API are imported when they are first used, so that `g2is --help` and commands
without work stay quick. For the same reason modules of the library that commands import at their
start import torch, transformers, scikit-learn and SciPy inside functions.

>>> from g2is_ray import Selector, Workspace, best_first, read_selection, round_robin
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from g2is_ray.selection.reading import SelectedRow as SelectedRow
    from g2is_ray.selection.reading import read_selection as read_selection
    from g2is_ray.selector.interface import Selector as Selector
    from g2is_ray.selector.interface import best_first as best_first
    from g2is_ray.selector.interface import round_robin as round_robin
    from g2is_ray.workspace.workspace import Workspace as Workspace

__version__ = "0.1.0"

_MODULES = {
    "SelectedRow": "g2is_ray.selection.reading",
    "Selector": "g2is_ray.selector.interface",
    "Workspace": "g2is_ray.workspace.workspace",
    "best_first": "g2is_ray.selector.interface",
    "read_selection": "g2is_ray.selection.reading",
    "round_robin": "g2is_ray.selector.interface",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
