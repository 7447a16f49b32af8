"""What a workspace remembers of settings: checked like any input, because it may be anybody's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from g2is_ray.config import check, fields_of
from g2is_ray.errors import SettingError, WorkspaceError
from g2is_ray.workspace.records import Record
from g2is_ray.workspace.workspace import Workspace
from jobs.settings import NEVER_REMEMBERED, RUN

_CLASSES = [cls for cls in RUN if cls not in NEVER_REMEMBERED]
_NAMES = fields_of(_CLASSES).keys() - {"append", "joint"}  # which are asked for once

_STORES = "file|memory|s3|s3a|gs|gcs|az|abfss?|https?|hf"
_PLAIN = re.compile(rf"(?![a-z0-9+.-]*://|data:)|({_STORES})://", re.IGNORECASE)
"""Paths, and URLs of stores that hold files. Other kinds of fsspec's run programs, or templates
that files name."""


def remembered(
    workspace: Workspace, stage: str, known: Mapping[str, Record], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings that the record of a stage holds; none if there is no record.

    Args:
        given: settings of this command, in whose place nothing is remembered.

    Raises:
        WorkspaceError: a name or a value cannot have been remembered.
        SettingError: a source of rows must be given again.
    """
    index = workspace.storage.location("workspace.json")
    arguments: dict[str, Any] = known.get(stage, {}).get("arguments", {})
    if unknown := sorted(arguments.keys() - _NAMES):
        raise WorkspaceError(
            f"{index} is damaged: {stage} remembers "
            f"{unknown[0][:100]!r}, which is no setting that is remembered"
        )
    try:
        check(_CLASSES, arguments)
    except SettingError as error:
        raise WorkspaceError(f"{index} is damaged: {stage} remembers that {error}") from None
    for name in ("pool", "target", "test"):
        sources = arguments.get(name, ())
        for source in sources.values() if isinstance(sources, dict) else sources:
            if name not in given and ("::" in source or not _PLAIN.match(source)):
                raise SettingError(
                    f"the workspace remembers {source!r} as a source of rows, which is read only "
                    f"if this command names it: give --{name} again"
                )
    return arguments
