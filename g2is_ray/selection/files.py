"""The files of a selection: its picks, the selected rows, and finished pieces."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from g2is_ray.data.examples import ExampleSet
from g2is_ray.selector.picks import Pick
from g2is_ray.workspace.layout import POOL
from g2is_ray.workspace.workspace import STAGE_RECEIPT, Workspace


def pick_lines(picks: Sequence[Pick], ids: Sequence[str] | None = None) -> bytes:
    """JSON lines of picks, with the rows' ids if given."""
    records = [asdict(pick) for pick in picks]
    for record, row_id in zip(records, ids or [], strict=False):
        record["id"] = row_id
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def read_picks(workspace: Workspace, stage: str, pool_rows: int) -> list[dict[str, Any]]:
    """Picks of a selection from a pool of this many rows, as `pick_lines` wrote them.

    Raises:
        WorkspaceError: the file is damaged, or a pick is not a row of the pool.
    """
    path = f"{stage}/selection.jsonl"
    lines = workspace.storage.read_bytes(path).splitlines()
    with workspace.storage.understanding(path):
        picks: list[dict[str, Any]] = [json.loads(line) for line in lines]
        if not all(type(pick["row"]) is int and 0 <= pick["row"] < pool_rows for pick in picks):
            raise ValueError
    return picks


def read_rows(workspace: Workspace, stage: str) -> list[int]:
    """Pool rows of a finished selection, in the order of picking.

    Raises:
        WorkspaceError: the selection is not finished, or damaged.
    """
    workspace.stage(stage).require_piece(STAGE_RECEIPT)  # a truncated file would be read in part
    return [pick["row"] for pick in read_picks(workspace, stage, ExampleSet(workspace, POOL).rows)]


def selected_rows(workspace: Workspace, variant: str) -> list[int]:
    """Pool rows of the finished selection `selections/VARIANT`, in the order of picking.

    Raises:
        WorkspaceError: the selection is not finished, older than the pool, or damaged.
    """
    stage = f"selections/{variant}"
    workspace.stage(stage).require_current()
    return read_rows(workspace, stage)


def finished_pieces(workspace: Workspace, stage: str) -> Iterator[list[Pick]]:
    """Picks of the first pieces, up to the first one that is not finished."""
    for piece in itertools.count():
        name = _piece_name(piece)
        if workspace.stage(stage).verified(name) is None:
            return
        lines = workspace.storage.read_bytes(f"{stage}/{name}.jsonl").splitlines()
        with workspace.storage.understanding(f"{stage}/{name}.jsonl"):
            picks = [Pick(**json.loads(line)) for line in lines]
        yield picks


def save_piece(workspace: Workspace, stage: str, piece: int, picks: Sequence[Pick]) -> None:
    """Write a finished piece."""
    name = _piece_name(piece)
    files = {f"{name}.jsonl": pick_lines(picks)}
    workspace.stage(stage).commit(name, files, {"picks": len(picks)})


def _piece_name(piece: int) -> str:
    return f"component-{piece:05d}"  # only the walk works in pieces, which are its components


def write_selection(
    workspace: Workspace,
    stage: str,
    picks: Sequence[Pick],
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    seconds: float,
) -> None:
    """Write the picks, the selected rows and the summary, and the receipt last.

    Args:
        rows: id and record of each pick's row.
    """
    files = {
        "selection.jsonl": pick_lines(picks, [row["id"] for row in rows]),
        "selected.jsonl": "".join(row["record"] + "\n" for row in rows).encode(),
        "summary.json": (json.dumps(summary, indent=1) + "\n").encode(),
    }
    workspace.stage(stage).commit(STAGE_RECEIPT, files, {**summary, "seconds": round(seconds, 3)})
