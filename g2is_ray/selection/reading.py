"""Finished selections, as records for Python programs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from g2is_ray.data.examples import ExampleSet
from g2is_ray.selection.files import read_picks
from g2is_ray.workspace.layout import POOL
from g2is_ray.workspace.workspace import STAGE_RECEIPT, Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedRow:
    """A selected row of the pool, and why it was picked."""

    rank: int  # from 0, in the order of picking
    row: int  # of the pool
    id: str  # of the row
    step: str  # of the selector, such as score, or the walk's anchor, neighbor and fallback
    similarity: float | None  # score of the pick, where the selector has one
    component: int | None  # principal component of the target, which the walk alone has
    record: dict[str, Any]  # the row as the pool's file has it


def read_selection(workspace: Workspace | str | os.PathLike[str], target: str) -> list[SelectedRow]:
    """The rows of a finished selection, in the order of picking.

    Args:
        workspace: a workspace, or its directory or URL.
        target: a target, `joint`, or a baseline such as `gsm8k@random`.

    Raises:
        WorkspaceError: there is no such selection, or it is damaged.

    >>> from g2is_ray import read_selection
    >>> first = read_selection(workspace, "gsm8k")[0]
    >>> first.rank
    0
    >>> sorted(first.record)
    ['domain', 'id', 'messages', 'source']
    """
    if not isinstance(workspace, Workspace):
        workspace = Workspace(os.fspath(workspace))
    stage = f"selections/{target}"
    workspace.stage(stage).require()
    workspace.stage(stage).require_piece(STAGE_RECEIPT)  # whole and unaltered
    picks = read_picks(workspace, stage, ExampleSet(workspace, POOL).rows)
    records = workspace.storage.read_bytes(f"{stage}/selected.jsonl").splitlines()
    with workspace.storage.understanding(f"{stage}/selection.jsonl"):
        return [
            _selected_row(pick, json.loads(record))
            for pick, record in zip(picks, records, strict=True)
        ]


def _selected_row(pick: dict[str, Any], record: dict[str, Any]) -> SelectedRow:
    names = ("rank", "row", "id", "step", "similarity", "component")
    return SelectedRow(**{name: pick[name] for name in names}, record=record)
