"""The `g2is` command, before anything of the project is imported.

The project's packages have common names, so those of somebody else on Python's path may hide them.
This module looks at the path first, imports nothing but the standard library, and says which.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_PACKAGES = ("g2is_ray", "actors", "jobs")
_HERE = Path(__file__).resolve().parent


def hidden_packages(path: Sequence[str] | None = None) -> str:
    """Says which package of somebody else is imported in place of the project's, or nothing.

    Args:
        path: folders to look in; left out, where this process imports from.
    """
    for name in _PACKAGES:
        try:
            found = PathFinder.find_spec(name, path) if path else importlib.util.find_spec(name)
        except (ImportError, ValueError):  # of a module that was made up at run time
            continue
        place = _place(found)
        if place is not None and place != _HERE / name:
            return (
                f"{place} is imported in place of g2is-ray's package {name}, {_HERE / name}: "
                "rename it, take its folder out of PYTHONPATH, or give the command from another "
                "folder"
            )
    return ""


def hidden_from_workers() -> str:
    """As `hidden_packages`, of Ray's workers: they import from the current folder first."""
    return hidden_packages([os.fspath(Path.cwd()), *filter(None, sys.path)])


def _place(found: ModuleSpec | None) -> Path | None:
    """The folder of a package, or the file of a module."""
    if found is None:
        return None
    if found.submodule_search_locations:
        return Path(next(iter(found.submodule_search_locations))).resolve()
    return Path(found.origin).resolve() if found.origin else None


def main() -> int:
    """Run the command line; returns the exit status."""
    _open_standard_streams()
    try:
        hidden = hidden_packages()
        if hidden:
            print(f"g2is: error: {hidden}", file=sys.stderr)
            return 2
        from jobs.cli import main as run

        return run()
    except KeyboardInterrupt:  # while it imports; later, the command itself sees to it
        print("g2is: interrupted", file=sys.stderr)
        return 130


def _open_standard_streams() -> None:
    """Open those that are closed, or the next file that is opened would get what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


if __name__ == "__main__":
    sys.exit(main())
