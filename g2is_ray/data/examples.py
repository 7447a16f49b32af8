"""Sets of examples in a workspace: the pool, and each target's val and test rows.

A set is a folder of Parquet parts. Every row keeps its input record, so that a selection is
written in the schema of its input.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from g2is_ray.chat import conversation
from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.config import ReadSettings
from g2is_ray.data.ids import Ids
from g2is_ray.data.reading import Example, Rejected, read_examples
from g2is_ray.errors import InputError, WorkspaceError
from g2is_ray.workspace import scratch
from g2is_ray.workspace.workspace import STAGE_RECEIPT, Workspace, part_name

log = logging.getLogger(__name__)

_MAX_REJECTED_ROWS = 10_000  # per part, which bounds memory; enough to judge a pool by

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        *conversation.FIELDS,
        ("group", pa.string()),
        ("answer", pa.string()),
        ("record", pa.string()),
        ("tokens", pa.int32()),
        ("supervised_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("altered", pa.bool_()),
    ]
)


class ExampleSet:
    """Reads the examples of a finished set, part by part."""

    def __init__(self, workspace: Workspace, folder: str) -> None:
        self._workspace = workspace
        self.folder = folder
        receipt = workspace.stage(folder).require()
        self.rows: int = receipt["rows"]
        self.parts: int = receipt["parts"]
        full = receipt["part_rows"]  # only the last part of each reading has fewer rows
        firsts = range(0, self.rows, full)
        sizes = receipt.get("sizes")
        if sizes is None and len(firsts) == self.parts:
            sizes = [min(full, self.rows - first) for first in firsts]
        if sizes is None or (len(sizes), sum(sizes)) != (self.parts, self.rows):
            raise workspace.storage.damaged(f"{folder}/{STAGE_RECEIPT}.json")
        self.first_rows = np.concatenate([[0], np.cumsum(sizes)])

    def read(self, part: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Rows of a part as dictionaries of `columns`; by default, the columns of `SCHEMA`."""
        return self._table(part, columns).to_pylist()

    def _table(self, part: int, columns: Sequence[str] | None) -> pa.Table:
        path = f"{self.folder}/{part_name(part)}.parquet"
        data = self._workspace.storage.read_bytes(path)
        try:
            return pq.read_table(pa.BufferReader(data), columns=columns and list(columns))
        except (pa.ArrowException, OSError):
            raise self._workspace.storage.damaged(path) from None

    def turns(self, part: int) -> list[list[tuple[str, str]]]:
        """Role and text of each turn, by row of a part; faster than reading whole messages."""
        messages = self._table(part, ["messages"]).column("messages").combine_chunks()
        held = messages.values
        texts = (text or "" for text in held.field("content").to_pylist())
        every = list(zip(held.field("role").to_pylist(), texts, strict=True))
        bounds = messages.offsets.to_pylist()
        return [every[first:end] for first, end in itertools.pairwise(bounds)]

    def read_all(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Every row in order."""
        for part in range(self.parts):
            yield from self.read(part, columns)

    def supervised_tokens(self) -> NDArray[np.int64]:
        """Supervised tokens [n] of each row."""
        rows = self.read_all(["supervised_tokens"])
        return np.fromiter((row["supervised_tokens"] for row in rows), dtype=np.int64)

    def take(
        self, rows: Iterable[int], columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """The rows with these numbers, in the given order; each part is read once."""
        wanted = np.asarray(list(rows), dtype=np.int64)
        part_of = np.searchsorted(self.first_rows, wanted, side="right") - 1
        found: dict[int, dict[str, Any]] = {}
        for part in np.unique(part_of).tolist():
            held = self.read(part, columns)
            first = int(self.first_rows[part])
            found.update({r: held[r - first] for r in wanted[part_of == part].tolist()})
        return [found[row] for row in wanted.tolist()]


def write_examples(
    workspace: Workspace,
    folder: str,
    files: Sequence[str],
    encoder: ChatEncoder,
    settings: ReadSettings,
    *,
    schema: str = "auto",
    max_rows: int | None = None,
    append: str = "",
    max_rejected_rows: int = _MAX_REJECTED_ROWS,
) -> dict[str, Any]:
    """Read examples from `files` and write them as the parts of the set `folder`.

    Memory holds one part at a time. Finished parts are skipped. Rejected rows go to
    `rejected.jsonl` with file, line, reason and text.

    Args:
        append: identifier of these files; if given, they become further parts of the finished
            set, which does not change until all of them are written.
        max_rejected_rows: a part ends after this many rejected rows; from then on, reading stops
            as soon as a part's end finds the share of rejected rows too high.

    Returns:
        The set's receipt: rows, parts, sizes (rows of each part), part_rows, rejected,
        truncated, altered, tokens, and the first part of each append.

    Raises:
        InputError: a file cannot be read, an id is used twice, nothing usable is left,
            more than `settings.max_rejected` of the files' rows cannot be used, or there are
            more than `max_rows`.
    """
    began = time.monotonic()
    receipts: list[dict[str, Any]] = []
    first = _first_part(workspace, folder, append)
    with scratch.folder() as temporary:
        ids = Ids(temporary)
        for part in range(first):
            for row in ExampleSet(workspace, folder).read(part, ["id", "file", "line"]):
                ids.add(row["id"], row["file"], row["line"])
        items = read_examples(
            files,
            format=schema,
            source_field=settings.source_field,
            supervise=settings.supervise,
        )
        numbered = _checked(items, ids, files, max_rows)
        while True:
            receipt = _write_part(
                workspace,
                folder,
                first + len(receipts),
                numbered,
                encoder,
                settings.part_rows,
                append,
                max_rejected_rows,
            )
            if receipt is None:
                break
            receipts.append(receipt)
            log.info("%s: %d rows read", folder, sum(r["rows"] for r in receipts))
            if _too_many(receipts, settings, at_least=max_rejected_rows):
                break
        ids.close()
    _refuse_rejected(workspace, folder, files, first, receipts, settings)
    seconds = time.monotonic() - began
    return _finish(workspace, folder, first, receipts, settings.part_rows, append, seconds)


def _set_receipt(workspace: Workspace, folder: str) -> dict[str, Any]:
    """The set's receipt, without a check of its files; empty if there is none."""
    try:
        return workspace.stage(folder).receipt()
    except WorkspaceError:
        return {}


def _first_part(workspace: Workspace, folder: str, append: str) -> int:
    """Number of the first part of an append, whether the append is finished or not."""
    if not append:
        return 0
    receipt = workspace.stage(folder).require()
    return int(receipt.get("appends", {}).get(append, receipt["parts"]))


def _checked(
    items: Iterable[Example | Rejected], ids: Ids, files: Sequence[str], max_rows: int | None
) -> Iterator[Example | Rejected]:
    count = 0
    for item in items:
        if isinstance(item, Example):
            name = ids.add(item.id, item.file, item.line)
            if name != item.id:
                item = replace(item, id=name)
            count += 1
            if max_rows is not None and count > max_rows:
                raise InputError(
                    f"{', '.join(files)}: more than {max_rows} rows; a target is tens to "
                    "hundreds of examples of one domain, so pass a sample of it, or raise "
                    "max_target_rows"
                )
        yield item


def _write_part(
    workspace: Workspace,
    folder: str,
    part: int,
    items: Iterator[Example | Rejected],
    encoder: ChatEncoder,
    part_rows: int,
    append: str,
    max_rejected_rows: int,
) -> dict[str, Any] | None:
    """Write the next part, or skip its items if it is finished; None at the end."""
    done = workspace.stage(folder).verified(part_name(part))
    if done is not None and done.get("append", "") == append:
        for _ in range(done["items"]):
            next(items)
        return done
    rows: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    for item in items:
        if isinstance(item, Rejected):
            rejected.append(item)
        else:
            try:
                rows.append(_row(item, encoder))
            except InputError as error:
                rejected.append(
                    Rejected(
                        file=item.file, line=item.line, reason=str(error), text=item.record[:2000]
                    )
                )
        if len(rows) == part_rows or len(rejected) == max_rejected_rows:
            break
    if not rows and not rejected:
        return None
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink, compression="zstd")
    name = part_name(part)
    files = {f"{name}.parquet": sink.getvalue().to_pybytes()}
    if rejected:
        files[f"{name}.rejected.jsonl"] = b"".join(_rejected_line(one) for one in rejected)
    facts = {
        "rows": len(rows),
        "items": len(rows) + len(rejected),
        "rejected": len(rejected),
        "truncated": sum(row["truncated"] for row in rows),
        "altered": sum(row["altered"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
    }
    if append:
        facts["append"] = append
    return workspace.stage(folder).commit(name, files, facts)


def _row(example: Example, encoder: ChatEncoder) -> dict[str, Any]:
    encoded = encoder.encode(example.conversation)
    return {
        "id": example.id,
        "file": example.file,
        "line": example.line,
        **example.conversation.columns(),
        "group": example.group,
        "answer": example.answer,
        "record": example.record,
        "tokens": len(encoded.input_ids),
        "supervised_tokens": encoded.supervised_tokens,
        "truncated": encoded.truncated,
        "altered": encoded.altered,
    }


def _rejected_line(one: Rejected) -> bytes:
    fields = {"file": one.file, "line": one.line, "reason": one.reason, "text": one.text}
    return (json.dumps(fields) + "\n").encode()


def _too_many(
    receipts: Sequence[dict[str, Any]], settings: ReadSettings, *, at_least: int = 1
) -> bool:
    """Whether the share of rejected rows of these parts is above the maximum."""
    items, rejected = (sum(r[key] for r in receipts) for key in ("items", "rejected"))
    return rejected >= at_least and rejected > settings.max_rejected * items


def _refuse_rejected(
    workspace: Workspace,
    folder: str,
    files: Sequence[str],
    first: int,
    receipts: Sequence[dict[str, Any]],
    settings: ReadSettings,
) -> None:
    """Raise InputError if too many rows were rejected; names the first and the list of all."""
    rows, items, rejected = (sum(r[key] for r in receipts) for key in ("rows", "items", "rejected"))
    if not rejected:
        return
    lines = _rejected_lines(workspace, folder, enumerate(receipts, start=first))
    one = json.loads(lines.splitlines()[0])
    reason = f"{one['file']}:{one['line']}: {one['reason']}"
    log.warning("%s: rejected %d rows, first %s", folder, rejected, reason)
    if not rows or _too_many(receipts, settings):
        # A finished set's own rejected.jsonl belongs to its receipt.
        where = f"{folder}/{'append-' if first else ''}rejected.jsonl"
        workspace.storage.write_bytes(where, lines)
        allowed = f"more than max_rejected {settings.max_rejected:g} allows"
        raise InputError(
            f"{', '.join(files)}: {rejected} of {items} rows cannot be used, "
            f"{allowed if rows else 'so no row is left'}; the first is {reason}; "
            f"all are in {workspace.storage.location(where)}"
        )


def _rejected_lines(
    workspace: Workspace, folder: str, receipts: Iterable[tuple[int, dict[str, Any]]]
) -> bytes:
    return b"".join(
        workspace.storage.read_bytes(f"{folder}/{part_name(part)}.rejected.jsonl")
        for part, receipt in receipts
        if receipt["rejected"]
    )


def _finish(
    workspace: Workspace,
    folder: str,
    first: int,
    own: Sequence[dict[str, Any]],
    part_rows: int,
    append: str,
    seconds: float,
) -> dict[str, Any]:
    """Write the set's receipt from the receipts of its new and earlier parts."""
    earlier = _set_receipt(workspace, folder)
    count = max(first + len(own), earlier.get("parts", 0))
    receipts = [
        own[part - first] if 0 <= part - first < len(own) else workspace.stage(folder).receipt(name)
        for part, name in enumerate(map(part_name, range(count)))
    ]
    keys = ("rows", "items", "rejected", "truncated", "altered", "tokens")
    facts = {
        **{key: sum(r[key] for r in receipts) for key in keys},
        "parts": count,
        "part_rows": part_rows,
        "sizes": [r["rows"] for r in receipts],
        "seconds": round(seconds + (earlier["seconds"] if append else 0), 3),
    }
    appends = earlier.get("appends", {}) | ({append: first} if append else {})
    if appends:
        facts["appends"] = appends
    lines = _rejected_lines(workspace, folder, enumerate(receipts))
    receipt = workspace.stage(folder).commit(
        STAGE_RECEIPT, {"rejected.jsonl": lines} if lines else {}, facts
    )
    _remove_leftovers(workspace, folder, count)
    return receipt


def _remove_leftovers(workspace: Workspace, folder: str, parts: int) -> None:
    """Remove parts of an unfinished append, which the set's receipt does not list."""
    kept = {part_name(part) for part in range(parts)}
    for name in workspace.storage.names(folder):
        is_part = name.startswith("part-") and name.partition(".")[0] not in kept
        if is_part or name == "append-rejected.jsonl":
            workspace.storage.remove(f"{folder}/{name}")
