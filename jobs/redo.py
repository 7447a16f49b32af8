"""Remove stages and all that was made from them, for a command to recompute them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from g2is_ray.config import JointSettings, RedoSettings
from g2is_ray.data.sources import expand
from g2is_ray.errors import SettingError
from g2is_ray.workspace.layout import JOINT, STAGE, comparison_file, score_name, variants_in
from g2is_ray.workspace.records import Record
from g2is_ray.workspace.workspace import STAGE_RECEIPT, Workspace
from jobs.session import Session

log = logging.getLogger(__name__)


def redo(session: Session) -> None:
    """Remove the stages that `redo` names and those made from them; their settings stay known.

    Raises:
        SettingError: there is no such stage.
        InputError: a file of rows that would have to be read again is not there.
    """
    names = session.settings(RedoSettings).redo
    if not names:
        return
    workspace = session.workspace
    known = workspace.stages()
    stages = with_dependents(_named(workspace, names, known), known)
    for source in session.sources(stages):
        expand([source])
    stale = [*stages, *_measured(workspace, stages)]
    workspace.forget([stage for stage in stages if "@" in stage or _is_left_out(session, stage)])
    for path in stale:
        workspace.storage.remove(path)
    log.info("removed to be recomputed: %s", ", ".join(stages) or "nothing, there is nothing yet")
    log.info("to go on after an interruption, give the command without --redo")


def _is_left_out(session: Session, stage: str) -> bool:
    """Whether a stage belongs to the joint selection and this command does not make one."""
    return stage.endswith(f"/{JOINT}") and not session.settings(JointSettings).joint


def with_dependents(stages: Iterable[str], known: Mapping[str, Record]) -> list[str]:
    """The stages, and all that were made from them, in the order in which they were begun."""
    found: set[str] = set()
    more = set(stages)
    while more:
        found |= more
        more = {
            name
            for name, record in known.items()
            if name not in found and (found & record["inputs"].keys() or _tries(name, found))
        }
    return [name for name in dict.fromkeys((*known, *found)) if name in found]


def _tries(stage: str, made: set[str]) -> bool:
    """Whether a comparison's trials are of selections that are among these stages."""
    target, _, kind = stage.rpartition("/")
    return kind == "trials" and any(one.startswith(f"{target}/selections/") for one in made)


def _named(workspace: Workspace, names: Iterable[str], known: Mapping[str, Record]) -> list[str]:
    """Stages with one of the names, or in a folder of that name."""
    found = []
    for name in names:
        plain = name.strip("/")
        own = [stage for stage in known if f"{stage}/".startswith(f"{plain}/")]
        if not own and STAGE.fullmatch(plain) and workspace.storage.names(plain):
            own = [plain]  # of unknown origin
        if not own or not plain:
            there = ", ".join(known) or "none yet"
            raise SettingError(f"redo {name} names no stage of {workspace.url}; there are {there}")
        found += own
    return found


def _measured(workspace: Workspace, stages: Iterable[str]) -> list[str]:
    """Files that show stages, in folders of others: scores, and a comparison's numbers."""
    files: dict[str, None] = {}
    removed = set(stages)
    for target in workspace.storage.names("evaluations"):
        for variant in variants_in(workspace, target):
            if f"tuned/{variant}" in removed:
                score = score_name(target, variant)
                files |= dict.fromkeys(
                    f"evaluations/{target}/{name}.json" for name in (score, STAGE_RECEIPT)
                )
    for stage in removed:
        if stage.startswith("comparisons/") and (tokens := stage.split("/")[1]).isdecimal():
            files |= dict.fromkeys(comparison_file(int(tokens), kind) for kind in ("json", "html"))
    return list(files)
