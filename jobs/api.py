"""Commands as functions, for Python programs and notebooks: `from jobs import run`.

Settings are keyword arguments with the names, defaults and checks of the command line. Errors are
those of `g2is_ray.errors`. The functions leave signal handlers and logging as they are; the log
lines of a command are under the loggers `jobs`, `actors` and `g2is_ray`. Where Ray is initialized
already, its cluster is used and stays up.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from g2is_ray.config import fields_of
from g2is_ray.errors import SettingError
from g2is_ray.selection.reading import SelectedRow, read_selection
from jobs.commands import COMMANDS, perform
from jobs.flags import RENAMED, as_lists

if TYPE_CHECKING:
    from g2is_ray.comparison.comparison import Comparison
    from jobs.keywords import CompareArguments, RunArguments, SelectArguments
    from jobs.result import RunResult


def run(workspace: str | os.PathLike[str], **settings: Unpack[RunArguments]) -> RunResult:
    """Run the main job: every stage that is not done; returns what was selected and measured.

    Args:
        workspace: directory or URL; made if it does not exist.
        settings: those of `g2is run`, which `g2is run --help` lists.

    Raises:
        G2isError: a setting, a file or the workspace cannot be used, or workers failed.

    >>> from jobs import run
    >>> result = run(
    ...     workspace,
    ...     pool="examples/data/pool.jsonl",
    ...     target={"gsm8k": "examples/data/target-gsm8k-val.jsonl"},
    ...     test={"gsm8k": "examples/data/target-gsm8k-test.jsonl"},
    ...     model="examples/tiny-lm",
    ...     features="embeddings",
    ...     fraction=0.01,
    ...     max_tokens=640,
    ...     tune_epochs=1,
    ...     exact_match_rows=0,
    ... )
    >>> gsm8k = result.targets["gsm8k"]
    >>> gsm8k.rows
    15
    >>> sorted(gsm8k.losses)
    ['base', 'random', 'selection']
    """
    return _call("run", workspace, settings)


def select(
    workspace: str | os.PathLike[str], **settings: Unpack[SelectArguments]
) -> dict[str, list[SelectedRow]]:
    """Select rows of the pool for each target; returns the rows of each selection by its name.

    Args:
        workspace: directory or URL, with the pool, the targets, and the features and the graph
            that the selector reads.
        settings: those of `g2is select`, which `g2is select --help` lists.

    Raises:
        G2isError: a setting or the workspace cannot be used, or an earlier stage is missing.

    >>> from g2is_ray import Selector, best_first
    >>> from jobs import select
    >>> class Shortest(Selector):
    ...     '''Rows with the fewest supervised tokens.'''
    ...
    ...     reads = frozenset({"tokens"})
    ...
    ...     def picks(self, pool, target, products):
    ...         return best_first(-pool.tokens.astype("float32"), pool.free)
    >>> found = select(workspace, selector=Shortest, fraction=0.1, baselines=["tfidf"])
    >>> sorted(found)
    ['gsm8k', 'gsm8k@tfidf']
    >>> [row.rank for row in found["gsm8k"]]
    [0, 1, 2]
    """
    names: list[str] = _call("select", workspace, settings)
    return {name: read_selection(os.fspath(workspace), name) for name in names}


def compare(workspace: str | os.PathLike[str], **settings: Unpack[CompareArguments]) -> Comparison:
    """Compare methods: select, tune and measure with each, for several seeds; returns the numbers.

    Args:
        workspace: directory or URL of a finished run, whose targets have test rows.
        settings: those of `g2is compare`, which `g2is compare --help` lists.

    Raises:
        G2isError: a setting or the workspace cannot be used, or workers failed.

    >>> from jobs import compare
    >>> found = compare(workspace, methods=["random", "tfidf"], seeds=[0, 1], fraction=0.01)
    >>> sorted(method.name for method in found.targets[0].methods)
    ['random', 'tfidf']
    """
    return _call("compare", workspace, settings)


def _call(command: str, workspace: str | os.PathLike[str], settings: Mapping[str, Any]) -> Any:
    known = {*fields_of(COMMANDS[command].settings), "preset"}
    for name in settings:
        if name not in known:
            raise SettingError(_unknown(command, name, known))
    values = {name: _as_given(name, value) for name, value in settings.items()}
    place = os.fspath(workspace)
    line = (command, "--workspace", place)
    return perform(command, as_lists(values) | {"workspace": place}, line)


def _unknown(command: str, name: str, known: set[str]) -> str:
    if now := RENAMED.get(name):
        return f"the setting {name} is called {now} now"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"`g2is {command} --help` lists all"
    return f"{command} has no setting {name}; {hint}"


def _as_given(name: str, value: Any) -> Any:
    """The value of a setting, with the names of selectors in place of their classes."""
    if name not in ("selector", "baselines", "methods"):
        return value
    from g2is_ray.selector.registry import name_of

    if isinstance(value, type):
        return name_of(value)
    if isinstance(value, (list, tuple)):
        return [name_of(one) if isinstance(one, type) else one for one in value]
    return value
