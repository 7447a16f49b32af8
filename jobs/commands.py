"""The table of commands, and the one way in which each of them is run."""

from __future__ import annotations

import contextlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from g2is_ray.config import (
    EvaluateSettings,
    ExecutionSettings,
    GradientSettings,
    GraphSettings,
    JointSettings,
    LoraSettings,
    ModelSettings,
    PoolSettings,
    ReadSettings,
    RedoSettings,
    SeedSettings,
    SelectorSettings,
    TargetSettings,
    TuneSettings,
    WalkSettings,
    WarmupSettings,
    check,
)
from g2is_ray.data.export import ExportSettings
from g2is_ray.errors import InputError, SettingError
from g2is_ray.selector.methods import CompareSettings, ComparisonSettings
from jobs import startup
from jobs.submit import SubmitSettings
from jobs.walk import ArraySettings

INGEST = (ModelSettings, PoolSettings, TargetSettings, ReadSettings, SeedSettings, RedoSettings)
RUN = (
    *INGEST,
    LoraSettings,
    WarmupSettings,
    GradientSettings,
    GraphSettings,
    SelectorSettings,
    WalkSettings,
    JointSettings,
    ComparisonSettings,
    TuneSettings,
    EvaluateSettings,
    ExecutionSettings,
)
_LATER = (ModelSettings, RedoSettings)  # for stages that load the pool's model again


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Args:
        job: MODULE:FUNCTION, imported when the command is run.
        settings: classes of the settings that the command takes.
        help: one line.
        access: `writes` and `reads` are jobs on a workspace, which get a `Session`; only one job
            that writes runs at a time on a local workspace. `sends` passes workspace and settings
            to another machine; `none` works without a workspace of its own. Both get the values.
        shows: print what the job returns.
    """

    job: str
    settings: tuple[type, ...]
    help: str
    access: Literal["writes", "reads", "sends", "none"] = "writes"
    shows: bool = False


COMMANDS = {
    "run": Command(
        "jobs.result:run", RUN, "run the main job: all stages that are not done", shows=True
    ),
    "ingest": Command("jobs.ingest:ingest", INGEST, "read pool and targets"),
    "warmup": Command(
        "jobs.warmup:warm_up",
        (*_LATER, LoraSettings, WarmupSettings, SeedSettings, ExecutionSettings),
        "warm up the adapter",
    ),
    "gradients": Command(
        "jobs.gradients:gradients",
        (*_LATER, TargetSettings, GradientSettings, SeedSettings, ExecutionSettings),
        "compute gradients of pool and targets",
    ),
    "embeddings": Command(
        "jobs.embeddings:embeddings",
        (*_LATER, TargetSettings, ExecutionSettings),
        "compute embeddings of pool and targets, for rds and --features embeddings",
    ),
    "graph": Command(
        "jobs.graph:graph",
        (GraphSettings, ComparisonSettings, ExecutionSettings, RedoSettings),
        "build the kNN graph of gradients or embeddings",
    ),
    "select": Command(
        "jobs.selection:select_rows",
        (
            TargetSettings,
            GraphSettings,
            SelectorSettings,
            WalkSettings,
            JointSettings,
            ComparisonSettings,
            SeedSettings,
            RedoSettings,
        ),
        "select rows of the pool for each target",
    ),
    "tune": Command(
        "jobs.tune:tune",
        (*_LATER, TargetSettings, LoraSettings, TuneSettings, SeedSettings, ExecutionSettings),
        "tune an adapter on each selection",
    ),
    "evaluate": Command(
        "jobs.evaluate:evaluate",
        (*_LATER, TargetSettings, EvaluateSettings, ExecutionSettings),
        "measure test loss and exact match of base and tuned models",
    ),
    "compare": Command(
        "jobs.comparison:compare",
        (
            *_LATER,
            TargetSettings,
            CompareSettings,
            GraphSettings,
            SelectorSettings,
            WalkSettings,
            LoraSettings,
            TuneSettings,
            EvaluateSettings,
            ExecutionSettings,
        ),
        "compare methods: select, tune and measure with each, for several seeds",
        shows=True,
    ),
    "report": Command(
        "jobs.report:report", (TargetSettings, GraphSettings), "write report.html", access="reads"
    ),
    "status": Command(
        "jobs.status:status", (), "show the stages and how much of each is done", access="reads"
    ),
    "submit": Command(
        "jobs.submit:submit",
        (*RUN, SubmitSettings),
        "run the main job on a cluster, and follow its log",
        access="sends",
    ),
    "export": Command(
        "jobs.export:export",
        (ExportSettings,),
        "write finished selections for another trainer",
        access="none",
    ),
    "walk": Command(
        "jobs.walk:walk_arrays",
        (ArraySettings, WalkSettings),
        "select from gradient arrays that you already have",
        access="none",
    ),
}

STAGES = tuple(
    dict.fromkeys(
        cls
        for command in COMMANDS.values()
        if command.access in ("writes", "reads")
        for cls in command.settings
    )
)
"""Settings of all commands on a workspace: any of them may stand in a YAML file."""

_NEEDED = {
    "workspace": "--workspace DIRECTORY_OR_URL",
    "pool": "--pool FILE",
    "model": "--model NAME_OR_DIRECTORY",
    "target": "--target NAME=FILE",
}
"""What a first run needs, with flags that give it."""


def perform(
    name: str,
    values: Mapping[str, Any],
    line: Sequence[str] = (),
    *,
    inside: contextlib.AbstractContextManager[object] | None = None,
) -> Any:
    """Run a command; returns what its job returns.

    Args:
        name: a key of `COMMANDS`.
        values: settings by name, as given by the user; `workspace` and `preset` among them.
        line: the command line after `g2is`, for messages that say what to run instead.
        inside: entered around the job, and left before Ray is shut down.

    Raises:
        G2isError: a setting, a file or the workspace cannot be used, or workers failed.
    """
    command = COMMANDS[name]
    if command.access == "none":
        return _job(command)(values)
    values = dict(values)
    check(STAGES, values)
    workspace = values.get("workspace")
    if not workspace or not isinstance(workspace, str):
        raise SettingError(_what_is_missing(name, values))
    if command.access == "sends":
        return _job(command)(values)
    from jobs.redo import redo
    from jobs.session import Session

    del values["workspace"]
    if name not in ("run", "ingest") and not Session(workspace, {}).workspace.stages():
        raise InputError(f"{workspace} is not a workspace; `g2is ingest` or `g2is run` makes one")
    writes = command.access == "writes"
    if writes:
        startup.check_current_folder()
    opened = Session(workspace, values, line)
    if name == "run":  # before libraries are imported for a first run that lacks its input
        opened.settings(PoolSettings, "pool")
        opened.settings(ModelSettings, "pool")
        opened.targets()
    job = _job(command)
    opening = opened.writing(name) if writes else opened.reading()
    with opening as session, inside or contextlib.nullcontext():
        if name != "run":  # which checks more before anything is removed
            redo(session)
        return job(session)


def _job(command: Command) -> Callable[[Any], Any]:
    return pkgutil.resolve_name(command.job)


def _what_is_missing(name: str, values: Mapping[str, Any]) -> str:
    """A sentence on a command without a workspace, and on what else a first run lacks."""
    missing = [one for one in _NEEDED if one == "workspace" or not values.get(one)]
    if name == "ingest" and "target" in missing:  # which may be read later
        missing.remove("target")
    if name not in ("run", "ingest", "submit") or missing == ["workspace"]:
        return f"workspace is not set: give {_NEEDED['workspace']}"
    *first, last = missing
    flags = " ".join(_NEEDED[one] for one in missing)
    return (
        f"{', '.join(first)} and {last} are not set: give `g2is {name} {flags}`, or the same names "
        "in a YAML file with --config"
    )
