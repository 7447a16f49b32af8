"""The `g2is` command: flags and config file to settings, errors to one sentence."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import signal
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from g2is_ray import __version__
from g2is_ray.config import (
    PRESETS,
    BudgetSettings,
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
    TargetSettings,
    TuneSettings,
    WalkSettings,
    WarmupSettings,
    check,
    fields_of,
    flag,
)
from g2is_ray.errors import G2isError, InputError, SettingError
from g2is_ray.selector.methods import CompareSettings, ComparisonSettings, SelectorSettings
from jobs import startup
from jobs.signals import Signals

log = logging.getLogger(__name__)

_INGEST = (ModelSettings, PoolSettings, TargetSettings, ReadSettings, SeedSettings, RedoSettings)
_RUN = (
    *_INGEST,
    LoraSettings,
    WarmupSettings,
    GradientSettings,
    GraphSettings,
    SelectorSettings,
    BudgetSettings,
    WalkSettings,
    JointSettings,
    ComparisonSettings,
    TuneSettings,
    EvaluateSettings,
    ExecutionSettings,
)
_LATER = (ModelSettings, RedoSettings)  # of stages that load the pool's model again


@dataclass(frozen=True)
class Command:
    """A subcommand: its job as module:function, the settings it takes, and its help."""

    job: str
    settings: tuple[type, ...]
    help: str
    writes: bool = True  # one at a time on a local workspace


COMMANDS = {
    "run": Command("jobs.run:run", _RUN, "the main job: every stage that is not done"),
    "ingest": Command("jobs.ingest:ingest", _INGEST, "read pool and targets"),
    "warmup": Command(
        "jobs.warmup:warm_up",
        (*_LATER, LoraSettings, WarmupSettings, SeedSettings, ExecutionSettings),
        "warm up the adapter",
    ),
    "gradients": Command(
        "jobs.gradients:gradients",
        (*_LATER, TargetSettings, GradientSettings, SeedSettings, ExecutionSettings),
        "gradients of pool and targets",
    ),
    "embeddings": Command(
        "jobs.embeddings:embeddings",
        (*_LATER, TargetSettings, ExecutionSettings),
        "embeddings of pool and targets, for rds and --features embeddings",
    ),
    "graph": Command(
        "jobs.graph:graph",
        (GraphSettings, ComparisonSettings, ExecutionSettings, RedoSettings),
        "the kNN graph of gradients or embeddings",
    ),
    "select": Command(
        "jobs.selection:select_rows",
        (
            TargetSettings,
            GraphSettings,
            SelectorSettings,
            BudgetSettings,
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
        "test loss and exact match of base and tuned models",
    ),
    "compare": Command(
        "jobs.compare:compare",
        (
            *_LATER,
            TargetSettings,
            CompareSettings,
            GraphSettings,
            SelectorSettings,
            BudgetSettings,
            WalkSettings,
            LoraSettings,
            TuneSettings,
            EvaluateSettings,
            ExecutionSettings,
        ),
        "compare methods: select, tune and measure with each, for several seeds",
    ),
    "report": Command(
        "jobs.report:report", (TargetSettings, GraphSettings), "write report.html", writes=False
    ),
    "status": Command(
        "jobs.status:status", (), "show the stages and how much of each is done", writes=False
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 is done, 1 a bug, 2 the user's error; after a signal it is 128 and the signal's number.
    """
    with Signals() as signals:
        try:
            with signals.noticed():
                return _main(arguments, signals)
        except KeyboardInterrupt:
            print("g2is: interrupted; give the same command again to go on", file=sys.stderr)
            return signals.status
        except BrokenPipeError:  # as of `g2is status | head`
            with open(os.devnull, "w") as nowhere:  # noqa: PTH123  or Python says so at its end
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            return 128 + signal.SIGPIPE


def _main(arguments: Sequence[str] | None, signals: Signals) -> int:
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    command, debug = given.pop("command"), given.pop("debug")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    level = logging.DEBUG if debug else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)
    _quiet_libraries(debug)
    try:
        startup.check_process()
        status = _run(command, given, arguments or sys.argv[1:], signals)
        sys.stdout.flush()
        return status
    except G2isError as error:
        if debug:
            raise
        print(f"g2is: error: {_printable(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        sentence = startup.machine_error(error)
        if debug or not sentence:
            raise
        print(f"g2is: error: {_printable(sentence)}", file=sys.stderr)
        return 2


class _Formatter(logging.Formatter):
    """Log lines that may quote any file."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's own name
        return _printable(super().formatMessage(record))


def _printable(text: str) -> str:
    """Text on one line, without what a terminal would obey: control characters and the like."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+", " ", text)


def _quiet_libraries(debug: bool) -> None:
    names = "httpx faiss fsspec datasets matplotlib urllib3 filelock botocore aiobotocore"
    for name in names.split():
        logging.getLogger(name).setLevel(logging.INFO if debug else logging.WARNING)


def _run(command: str, given: dict[str, Any], line: Sequence[str], signals: Signals) -> int:
    if command == "walk":
        from jobs.walk import walk_arrays

        walk_arrays(given)
        return 0
    if command == "export":
        from jobs.export import export

        export(given)
        return 0
    wait = given.pop("wait", True)
    values = {**_from_yaml(given.pop("config", None)), **given}
    workspace = values.pop("workspace", None)
    if not workspace or not isinstance(workspace, str):
        raise SettingError("workspace is not set: give --workspace DIRECTORY_OR_URL")
    check(_RUN, values)
    if command == "submit":
        from jobs.submit import submit

        status = submit(workspace, values, wait=wait)
        return signals.status if status is None else status
    from jobs.redo import redo
    from jobs.session import Session

    if command not in ("run", "ingest") and not Session(workspace, {}).workspace.stages():
        raise InputError(f"{workspace} is not a workspace; `g2is ingest` or `g2is run` makes one")
    spec = COMMANDS[command]
    if spec.writes:
        startup.check_current_folder()
    module, function = spec.job.split(":")
    job: Callable[[Session], None] = getattr(__import__(module, fromlist=[function]), function)
    opened = Session(workspace, values, line)
    opening = opened.writing(command) if spec.writes else opened.reading()
    with opening as session, signals.noticed():  # noticed before Ray is shut down
        if command != "run":  # which checks more before anything is removed
            redo(session)
        job(session)
    return 0


# ---- config file -----------------------------------------------------------


def _from_yaml(path: str | None) -> dict[str, Any]:
    """Settings of a YAML file, under the same names as the flags."""
    if path is None:
        return {}
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: needs settings as `name: value` lines")
    known = {"workspace", "preset", *fields_of(_RUN)}
    plain = {str(name).replace("-", "_"): value for name, value in values.items()}
    for name in plain:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingError(f"{path}: there is no setting {name}{hint}")
    for name, field in fields_of(_RUN).items():  # one value may stand for a list of one
        if _kind(field) is tuple and isinstance(plain.get(name), str):
            plain[name] = [plain[name]]
    return plain


# ---- flags -----------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    from g2is_ray.data.export import ExportSettings
    from jobs.walk import ArraySettings

    parser = argparse.ArgumentParser(
        prog="g2is",
        description="Choose instruction-tuning data for a domain by its gradients.",
        epilog="A setting can stand in the YAML file given by --config, under the flag's name.",
    )
    parser.add_argument("--version", action="version", version=f"g2is-ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = _command(commands, name, command.help)
        _add_common(sub)
        _add_settings(sub, command.settings)
        if name == "status":
            sub.add_argument(
                "workspace", nargs="?", default=argparse.SUPPRESS, help="as --workspace"
            )
    submit = _command(commands, "submit", "run the main job on a cluster, and follow it")
    _add_common(submit)
    submit.add_argument(
        "--no-wait", dest="wait", action="store_false", help="do not follow the job"
    )
    _add_settings(submit, _RUN)
    export = _command(commands, "export", "write finished selections for another trainer")
    _add_settings(export, (ExportSettings,))
    walk = _command(commands, "walk", "select from gradient arrays that you already have")
    _add_settings(walk, (ArraySettings, WalkSettings))
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workspace", default=argparse.SUPPRESS, help="directory or URL")
    parser.add_argument("--config", default=None, help="YAML file of settings")


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    sub.add_argument("--debug", action="store_true", help="show tracebacks and more log lines")
    return sub


def _add_settings(parser: argparse.ArgumentParser, classes: tuple[type, ...]) -> None:
    if WalkSettings in classes:
        parser.add_argument(
            "--preset",
            choices=list(PRESETS),
            default=argparse.SUPPRESS,
            help="selector, and settings of graph and walk: as published, or as recommended",
        )
    for name, field in fields_of(classes).items():
        _add_setting(parser, name, field)


def _add_setting(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
    kind = _kind(field)
    help_text = (field.description or "").replace("%", "%%")
    if not field.is_required() and field.default not in ((), "", None) and kind is not dict:
        default = field.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        help_text += f" [{shown}]"
    options["help"] = help_text
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif kind is dict:
        metavar = "NAME=FILE" if field.annotation == dict[str, str] else "NAME=WEIGHT"
        options |= {"action": _Named, "metavar": metavar}
    elif kind is tuple:
        options |= {"nargs": "+", "metavar": name.upper()}
        options |= {"action": "extend"} if name == "redo" else {}
    else:
        options["metavar"] = _choices(field) or name.upper()
    parser.add_argument(flag(name), **options)


def _kind(field: FieldInfo) -> Any:
    annotation = field.annotation
    return typing.get_origin(annotation) or annotation


def _choices(field: FieldInfo) -> str:
    if typing.get_origin(field.annotation) is typing.Literal:
        return "|".join(map(str, typing.get_args(field.annotation)))
    return ""


class _Named(argparse.Action):
    """Collects NAME=VALUE into a dictionary."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        name, equals, value = values.partition("=")
        if not (name and equals and value):
            parser.error(f"{option_string} needs {self.metavar}, got {values!r}")
        held: Mapping[str, str] = getattr(namespace, self.dest, {})
        if name in held:
            parser.error(f"{option_string} names {name} twice")
        setattr(namespace, self.dest, {**held, name: value})


if __name__ == "__main__":
    sys.exit(main())
