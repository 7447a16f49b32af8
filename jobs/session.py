"""What every job works on: the workspace, the settings in force, and Ray when it is needed."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from actors.cluster import connected
from g2is_ray.config import (
    PRESETS,
    ExecutionSettings,
    TargetSettings,
    as_dict,
    build,
)
from g2is_ray.errors import SettingError, WorkspaceError
from g2is_ray.layout import NAME, targets_in
from g2is_ray.workspace import Growth, Workspace
from jobs.events import EventLog

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOCK = ".lock"


class Session:
    """A workspace and the settings given for it.

    A setting's value is the first of: given on the command line, given in the config file,
    the preset's, what the workspace remembers of the stage, the default.

    Args:
        given: settings by name, as given by the user, `preset` among them.
    """

    def __init__(self, workspace: str, given: Mapping[str, Any]) -> None:
        self.workspace = Workspace(workspace)
        self.events = EventLog(self.workspace)
        self.given = dict(given)
        preset = self.given.pop("preset", None)
        if preset is not None and preset not in list(PRESETS):
            raise SettingError(f"preset should be {' or '.join(PRESETS)}, got {preset!r}")
        self._preset = PRESETS[preset] if preset else {}
        self.execution = self.settings(ExecutionSettings)
        self._ray = contextlib.ExitStack()
        self._connected = False
        for name in {**self.given.get("target", {}), **self.given.get("test", {})}:
            if not NAME.fullmatch(name):
                raise SettingError(
                    f"target name {name!r} may hold letters, digits, '.', '_' and '-' only, and "
                    "begin with a letter or digit"
                )

    def settings(self, cls: type[T], *stages: str) -> T:
        """Settings of type `cls`; `stages` are where the workspace may remember them."""
        recorded: dict[str, Any] = {}
        known = self.workspace.stages() if stages else {}
        for stage in reversed(stages):
            recorded.update(known.get(stage, {}).get("arguments", {}))
        return build(cls, {**recorded, **self._preset, **self.given})

    def begin(
        self,
        stage: str,
        *settings: Any,
        inputs: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
        remember: Mapping[str, Any] | None = None,
        grown: Growth = "refuse",
    ) -> None:
        """Record what makes `stage`, or refuse if something else made what lies there.

        Args:
            settings: dataclasses that decide what is written.
            facts: further values that decide it.
            remember: values that do not, but that later commands need.
            grown: what becomes of a stage whose inputs have grown; see `Workspace.begin`.
        """
        values = as_dict(*settings)
        self.workspace.begin(
            stage,
            {**values, **(facts or {})},
            inputs,
            arguments={**values, **(remember or {})},
            grown=grown,
        )

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
            self._ray.enter_context(connected(self.execution.address))
            self._connected = True

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """The session for a `with` block; Ray is left at its end."""
        with self._ray:
            yield self

    @contextlib.contextmanager
    def writing(self, command: str) -> Iterator[Session]:
        """As `reading`, and the only one of this machine's that writes the workspace meanwhile."""
        with _locked(self.workspace), self.events.around(command), self.reading():
            yield self


@contextlib.contextmanager
def _locked(workspace: Workspace) -> Iterator[None]:
    """Hold a local workspace's lock; the kernel releases it however the process ends.

    Ray's processes do not inherit it: Python closes its files in programs that it starts.

    Raises:
        WorkspaceError: another command holds the lock, or the folder cannot be written.
    """
    if not workspace.is_local:
        yield
        return
    path = Path(workspace.location(_LOCK))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkspaceError(
                f"another command is writing {workspace.url}: wait until it ends, or stop it"
            ) from None
        except OSError as error:  # of a network file system that has no locks
            log.warning("%s cannot be locked: give one command at a time (%s)", path, error)
        yield
