"""Flags and YAML files: what a user writes, as settings by name."""

from __future__ import annotations

import argparse
import difflib
import inspect
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic.fields import FieldInfo

from g2is_ray import __version__
from g2is_ray.config import PRESETS, WalkSettings, fields_of, flag
from g2is_ray.errors import InputError, SettingError, one_line
from jobs.commands import COMMANDS, STAGES, Command

RENAMED = {"token_budget": "batch_tokens"}
"""Settings of earlier versions, with the names that they have now."""


def parse(arguments: Sequence[str]) -> tuple[str, dict[str, Any], bool]:
    """The command, the settings that its flags and its YAML file give, and whether to debug.

    Raises:
        SettingError: there is no such command or setting, or a flag lacks its value.
        InputError: the YAML file cannot be read.
        SystemExit: help or the version was asked for, and is printed.
    """
    check_command(arguments)
    known, unknown = parser_of(arguments[:1]).parse_known_args(arguments)
    given = vars(known)
    name, debug, config = given.pop("command"), given.pop("debug"), given.pop("config", None)
    if unknown:
        raise SettingError(_unknown_flag(name, unknown))
    return name, {**from_yaml(config), **given}, debug


def check_command(arguments: Sequence[str]) -> None:
    """Refuse a command that does not exist, with the one that was probably meant."""
    if not arguments:
        raise SettingError(
            "no command is given: `g2is run` runs the main job, and `g2is --help` lists all"
        )
    name = arguments[0]
    if not name.startswith("-") and name not in COMMANDS:
        hint = _did_you_mean(name, COMMANDS) or "; `g2is --help` lists the commands"
        raise SettingError(f"there is no command {name}{hint}")


def _unknown_flag(command: str, unknown: Sequence[str]) -> str:
    first = unknown[0]
    if not first.startswith("-"):
        return f"`g2is {command}` does not take {first!r}: values follow a flag, as in --pool FILE"
    name = first.partition("=")[0]
    setting = name.removeprefix("--").replace("-", "_")
    if now := RENAMED.get(setting):
        return f"{name} is called {flag(now)} now"
    others = [one for one, spec in COMMANDS.items() if setting in fields_of(spec.settings)]
    if others:
        hint = f"; it is a flag of {', '.join(others)}"
    else:
        hint = _did_you_mean(name, map(flag, _names(command)))
    hint = hint or f"; `g2is {command} --help` lists all"
    return f"`g2is {command}` has no flag {name}{hint}"


def _names(command: str) -> list[str]:
    """Names of all flags of a command."""
    spec = COMMANDS[command]
    names = [*fields_of(spec.settings), "debug", "help"]
    names += ["workspace", "config"] if spec.access != "none" else []
    return [*names, "preset"] if WalkSettings in spec.settings else names


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


# ---- YAML file ---------------------------------------------------------------


def from_yaml(path: str | None) -> dict[str, Any]:
    """Settings of a YAML file, under the same names as the flags.

    Raises:
        InputError: the file cannot be read, or holds something else than settings.
        SettingError: a setting does not exist.
    """
    if path is None:
        return {}
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not YAML: {one_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: needs settings as `name: value` lines")
    known = {"workspace", "preset", *fields_of(STAGES)}
    plain = {str(name).replace("-", "_"): value for name, value in values.items()}
    for name in plain.keys() - known:
        if now := RENAMED.get(name):
            raise SettingError(f"{path}: the setting {name} is called {now} now")
        hint = _did_you_mean(name, known) or "; `g2is run --help` lists the settings"
        raise SettingError(f"{path}: there is no setting {name}{hint}")
    return as_lists(plain)


def as_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with a list of one where a single text stands for it."""
    lists = {name for name, field in fields_of(STAGES).items() if _kind(field) is tuple}
    return {
        name: [value] if name in lists and isinstance(value, str) else value
        for name, value in values.items()
    }


# ---- flags -------------------------------------------------------------------


_USAGE = {
    "writes": "--workspace DIRECTORY_OR_URL [--config FILE.yaml] [--SETTING VALUE ...]",
    "reads": "--workspace DIRECTORY_OR_URL [--config FILE.yaml] [--SETTING VALUE ...]",
    "sends": "--workspace URL --address URL [--config FILE.yaml] [--SETTING VALUE ...]",
    "none": "--SETTING VALUE ...",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are the project's own."""

    def error(self, message: str) -> NoReturn:
        raise SettingError(f"{message}; `{self.prog} --help` says more")


def parser_of(only: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the command line, with the flags of `only` the command that is given."""
    parser = _Parser(
        prog="g2is",
        description="Choose instruction-tuning data for a domain by its gradients.",
        epilog="A setting may also stand in the YAML file given by --config, under the flag's "
        "name. `g2is COMMAND --help` lists a command's settings.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"g2is-ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = command.help
        sub = commands.add_parser(
            name,
            help=text,
            usage=f"g2is {name} {_USAGE[command.access]}",
            description=f"{text[0].upper()}{text[1:]}.",
            allow_abbrev=False,
        )
        if name in only:
            _add_flags(sub, name, command)
    return parser


def _add_flags(parser: argparse.ArgumentParser, name: str, command: Command) -> None:
    parser.add_argument("--debug", action="store_true", help="show tracebacks and more log lines")
    if command.access != "none":
        parser.add_argument("--workspace", default=argparse.SUPPRESS, help="directory or URL")
        parser.add_argument(
            "--config", default=None, metavar="FILE.yaml", help="YAML file of settings"
        )
    if WalkSettings in command.settings:
        parser.add_argument(
            "--preset",
            choices=list(PRESETS),
            metavar="|".join(PRESETS),
            default=argparse.SUPPRESS,
            help="selector, and settings of graph and walk: as published, or as recommended",
        )
    if name == "status":
        parser.add_argument(
            "workspace", nargs="?", default=argparse.SUPPRESS, help="the same as --workspace"
        )
    for cls in command.settings:
        group = parser.add_argument_group(str(inspect.getdoc(cls)).splitlines()[0].rstrip("."))
        for setting, field in fields_of([cls]).items():
            _add_setting(group, setting, field)


def _add_setting(group: Any, name: str, field: FieldInfo) -> None:
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
    group.add_argument(flag(name), **options)


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
