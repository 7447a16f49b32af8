"""What every job works on: the workspace, the settings in force, and Ray when it is needed."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from g2is_ray.config import (
    ExecutionSettings,
    ModelSettings,
    TargetSettings,
    as_dict,
    build,
    preset_values,
)
from g2is_ray.errors import InputError, SettingError, WorkspaceError
from g2is_ray.models.identity import model_identity
from g2is_ray.workspace.layout import NAME, targets_in
from g2is_ray.workspace.workspace import Growth, Workspace
from jobs.events import EventLog
from jobs.remembered import remembered
from jobs.settings import is_remembered, stages_remembering
from jobs.worker_log import WorkerLog

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOCK = ".lock"


class Session:
    """A workspace and the settings given for it.

    A setting's value is the first of: given on the command line, given in the config file,
    the preset's, what the workspace remembers of the stage, the default.

    Args:
        given: settings by name, as given by the user, `preset` among them.
        command: the command line after `g2is`, for messages that say what to give instead.
    """

    def __init__(
        self, workspace: str, given: Mapping[str, Any], command: Sequence[str] = ()
    ) -> None:
        self.workspace = Workspace(workspace)
        self._command = command or ("run", "--workspace", self.workspace.url)
        self.events = EventLog(self.workspace)
        self.worker_log = WorkerLog(self.workspace)
        self.given = dict(given)
        self._preset = preset_values(self.given.pop("preset", None))
        self.execution = self.settings(ExecutionSettings)
        self._ray = contextlib.ExitStack()
        self._connected = False
        for name in {**self.given.get("target", {}), **self.given.get("test", {})}:
            if not NAME.fullmatch(name):
                raise SettingError(
                    f"target name {name!r} may hold letters, digits, '.', '_' and '-' only, and "
                    "begin with a letter or digit"
                )

    def settings(self, cls: type[T], *names: str) -> T:
        """Settings of type `cls`, of which the workspace may remember some.

        Args:
            names: targets or variants that the settings are for, or a comparison's trials of them,
                in the order in which they count; see `jobs.settings`.

        Raises:
            SettingError: one is missing or wrong, or the workspace names code that only the
                command may name.
            WorkspaceError: what the workspace remembers cannot be.
        """
        recorded: dict[str, Any] = {}
        if is_remembered(cls):
            known = self.workspace.stages()
            for stage in reversed(list(stages_remembering(cls, names, known))):
                recorded |= remembered(self.workspace, stage, known, self.given)
        if cls is ModelSettings:
            self._require_named_code(recorded)
        return build(cls, {**recorded, **self._preset, **self.given})

    def _require_named_code(self, recorded: dict[str, Any]) -> None:
        """Refuse to run a model's code unless this very command names the model and asks for it."""
        asked = self.given.get("trust_remote_code", recorded.pop("trust_remote_code", False))
        if asked and not {"model", "trust_remote_code"} <= self.given.keys():
            model = shlex.quote(str(self.given.get("model", recorded.get("model"))))
            raise SettingError(
                f"code of the model {model} is run only if this very command asks for it: give "
                f"--model {model} --trust-remote-code again, if you trust its authors"
            )

    def begin(
        self,
        stage: str,
        *settings: Any,
        inputs: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
        remember: Mapping[str, Any] | None = None,
        grown: Growth = "refuse",
        remedies: Mapping[str, str] | None = None,
    ) -> None:
        """Record what makes `stage`, or refuse if something else made what lies there.

        Args:
            settings: dataclasses that decide what is written.
            facts: further values that decide it.
            remember: values that do not, but that later commands need.
            grown, remedies: see `Stage.begin`.
        """
        values = as_dict(*settings)
        self.workspace.stage(stage).begin(
            identified({**values, **(facts or {})}),
            inputs,
            arguments={**values, **(remember or {})},
            grown=grown,
            remedies=remedies,
            recompute=self.redo_command,
        )

    def redo_command(self, stages: Sequence[str]) -> str:
        """The command line that recomputes stages and what was made from them, as settings are."""
        command, *rest = self._command
        if command == "compare" and not stages[0].startswith("comparisons/"):
            rest = ["--workspace", self.workspace.url]  # the others are its own
        if command == "ingest" or stages[0] == "pool" or stages[0].startswith("targets/"):
            command = "run"  # which alone recomputes what depends on rows
        return shlex.join(["g2is", command, "--redo", *stages, *rest])

    def sources(self, stages: Iterable[str]) -> list[str]:
        """Files of rows that are read where these stages are to be recomputed."""
        known = self.workspace.stages()
        found: list[str] = []
        for stage in stages:
            values = remembered(self.workspace, stage, known, self.given) | self.given
            _, _, name = stage.removesuffix("/val").removesuffix("/test").partition("/")
            if stage == "pool":
                found += values.get("pool", ())
            elif stage.endswith(("/val", "/test")):
                kind = "test" if stage.endswith("/test") else "target"
                found += [file for key, file in values.get(kind, {}).items() if key == name]
        return found

    def targets(self) -> list[str]:
        """Names of the targets to work on: those given, or all that the workspace holds.

        Raises:
            SettingError: there are none.
        """
        names = sorted(self.settings(TargetSettings).target) or targets_in(self.workspace)
        if not names:
            raise SettingError("target is not set: give --target NAME=FILE at least once")
        return names

    def ray(self) -> None:
        """Connect to Ray, once."""
        if not self._connected:
            from actors.connection.cluster import connected

            self._ray.enter_context(self.worker_log.taking())
            self._ray.enter_context(connected(self.execution.address))
            self._connected = True

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """The session for a `with` block, at whose end Ray is left.

        The workspace's index is read once, so the command sees one state of it.
        """
        with self.workspace.index.kept(shared=True), self._ray:
            yield self

    @contextlib.contextmanager
    def writing(self, command: str) -> Iterator[Session]:
        """As `reading`, while no other command of this machine writes the workspace."""
        with (
            _locked(self.workspace) as alone,
            self.events.around(command),
            self.workspace.index.kept(shared=not alone),
            self._ray,
        ):
            yield self


def identified(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with what the model is, in place of where it lies.

    Raises:
        InputError: the model cannot be read.
    """
    if "model" not in settings:
        return dict(settings)
    try:
        return {**settings, "model": model_identity(settings["model"])}
    except OSError as error:
        raise InputError(f"model {settings['model']}: cannot be read: {error}") from None


@contextlib.contextmanager
def _locked(workspace: Workspace) -> Iterator[bool]:
    """Hold a local workspace's lock; the kernel releases it however the process ends.

    Ray's processes do not inherit it: Python closes its files in programs that it starts.

    Yields:
        Whether the lock is held: object storage and some network file systems have no locks.

    Raises:
        WorkspaceError: another command holds the lock, or the folder cannot be written.
    """
    if not workspace.storage.is_local:
        yield False
        return
    held = True
    with os.fdopen(workspace.storage.open_own(_LOCK)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkspaceError(
                f"another command is writing {workspace.url}: wait until it ends, or stop it"
            ) from None
        except OSError as error:  # of a network file system that has no locks
            where = workspace.storage.location(_LOCK)
            log.warning("%s cannot be locked: give one command at a time (%s)", where, error)
            held = False
        yield held
