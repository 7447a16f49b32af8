"""Drivers: one file per job, the `g2is` command, and the commands as functions.

>>> from jobs import compare, run, select
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.api import compare as compare
    from jobs.api import run as run
    from jobs.api import select as select

__all__ = ["compare", "run", "select"]


def __getattr__(name: str) -> Any:
    """Import the functions when they are first used: the command line does without them."""
    if name in __all__:
        from jobs import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
