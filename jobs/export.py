"""Write finished selections in the format of another trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from g2is_ray.config import build
from g2is_ray.data.examples import ExampleSet
from g2is_ray.data.export import ExportSettings, conversations, write_selections
from g2is_ray.errors import InputError, SettingError
from g2is_ray.workspace.layout import POOL
from g2is_ray.workspace.storage import Storage
from g2is_ray.workspace.workspace import Workspace
from jobs.session import Session

log = logging.getLogger(__name__)


def export(given: Mapping[str, Any]) -> None:
    """Write one selection, or all but those for comparison, to `output`."""
    settings = build(ExportSettings, given)
    session, output = Session(settings.workspace, {}), Storage(settings.output)
    names = _names(session.workspace, settings.target)
    pool = ExampleSet(session.workspace, POOL)
    selections = {name: conversations(pool, _rows(session, name)) for name in names}
    write_selections(selections, settings.format, output, overwrite=settings.overwrite)
    for name, rows in selections.items():
        log.info("export: %d rows of selections/%s, in %s", len(rows), name, output.url)


def _names(workspace: Workspace, wanted: str | None) -> list[str]:
    begun = (stage.partition("/") for stage in workspace.stages())
    known = sorted(name for folder, _, name in begun if folder == "selections")
    if not known:
        raise InputError(f"{workspace.url} holds no selection; `g2is run` makes one")
    if wanted is None:
        return [name for name in known if "@" not in name]
    if wanted not in known:
        raise SettingError(
            f"target {wanted} names no selection of {workspace.url}; there are {', '.join(known)}"
        )
    return [wanted]


def _rows(session: Session, name: str) -> list[int]:
    from jobs.selection import selected_rows

    rows = selected_rows(session, name)
    if not rows:
        raise InputError(f"selections/{name} is empty, so there is nothing to export")
    return rows
