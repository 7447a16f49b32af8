"""Sets of examples in a workspace: the pool, and each target's val and test rows.

A set is a folder of Parquet parts. Every row keeps the input's own record, so that the
selection can be handed back in the schema it came in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from g2is_ray.chat import ChatEncoder
from g2is_ray.config import ReadSettings
from g2is_ray.errors import InputError, WorkspaceError
from g2is_ray.reading import Example, Rejected, read_examples
from g2is_ray.workspace import STAGE_RECEIPT, Workspace, part_name

log = logging.getLogger(__name__)

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("messages", pa.list_(_MESSAGE)),
        ("group", pa.string()),
        ("answer", pa.string()),
        ("record", pa.string()),
        ("tokens", pa.int32()),
        ("supervised_tokens", pa.int32()),
        ("truncated", pa.bool_()),
    ]
)


class ExampleSet:
    """Reads the examples of a finished set, part by part."""

    def __init__(self, workspace: Workspace, folder: str) -> None:
        self._workspace = workspace
        self.folder = folder
        receipt = workspace.require(folder, "ingest")
        self.rows: int = receipt["rows"]
        self.parts: int = receipt["parts"]
        self.part_rows: int = receipt["part_rows"]

    def first_row(self, part: int) -> int:
        return part * self.part_rows

    def read(self, part: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Rows of a part, each a dictionary with the columns of `SCHEMA` or those named."""
        path = f"{self.folder}/{part_name(part)}.parquet"
        data = self._workspace.read_bytes(path)
        try:
            table = pq.read_table(pa.BufferReader(data), columns=columns and list(columns))
        except (pa.ArrowException, OSError):
            raise self._workspace.damaged(path) from None
        return table.to_pylist()

    def read_all(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Every row in order."""
        for part in range(self.parts):
            yield from self.read(part, columns)

    def take(
        self, rows: Iterable[int], columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """The rows with these numbers, in the order given; each part is read once."""
        wanted = list(rows)
        found: dict[int, dict[str, Any]] = {}
        for part in sorted({row // self.part_rows for row in wanted}):
            held = self.read(part, columns)
            first = self.first_row(part)
            found.update({r: held[r - first] for r in wanted if r // self.part_rows == part})
        return [found[row] for row in wanted]


class _Ids:
    """Where each id was first seen; on disk, so that memory does not grow with the pool."""

    def __init__(self, folder: str) -> None:
        self._db = sqlite3.connect(str(Path(folder) / "ids.sqlite"), isolation_level=None)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("BEGIN")
        self._db.execute("CREATE TABLE ids (key BLOB PRIMARY KEY, place TEXT) WITHOUT ROWID")

    def add(self, example: Example) -> None:
        """Raises InputError if the id was seen before, WorkspaceError if the disk is full."""
        key = hashlib.blake2b(example.id.encode(), digest_size=16).digest()
        place = f"{example.file}:{example.line}"
        try:
            self._db.execute("INSERT INTO ids VALUES (?, ?)", (key, place))
        except sqlite3.IntegrityError:
            first = self._db.execute("SELECT place FROM ids WHERE key = ?", (key,)).fetchone()[0]
            raise InputError(
                f"{place}: id {example.id!r} was already used at {first}; give every row an id "
                "of its own, or none"
            ) from None
        except sqlite3.OperationalError as error:
            raise WorkspaceError(
                f"{tempfile.gettempdir()} cannot hold the list of ids: {error}; free some space, "
                "or set TMPDIR to a larger place, and give the same command again"
            ) from None

    def close(self) -> None:
        self._db.close()


def write_examples(
    workspace: Workspace,
    folder: str,
    files: Sequence[str],
    encoder: ChatEncoder,
    settings: ReadSettings,
    *,
    schema: str = "auto",
    max_rows: int | None = None,
) -> dict[str, Any]:
    """Read examples from `files` and write them as the parts of the set `folder`.

    Streams: memory holds one part. Finished parts are not written again. Rows that
    cannot be used go to `rejected.jsonl` with file, line, reason and text.

    Returns:
        The set's receipt: rows, parts, part_rows, rejected, truncated, tokens.

    Raises:
        InputError: a file cannot be read, an id is used twice, nothing usable is left,
            more than `settings.max_rejected` of the rows cannot be used, or there are
            more than `max_rows`.
    """
    began = time.monotonic()
    receipts: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="g2is-ids-") as scratch:
        ids = _Ids(scratch)
        items = read_examples(files, format=schema, source_field=settings.source_field)
        numbered = _checked(items, ids, files, max_rows)
        while True:
            receipt = _write_part(
                workspace, folder, len(receipts), numbered, encoder, settings.part_rows
            )
            if receipt is None:
                break
            receipts.append(receipt)
            log.info("%s: %d rows read", folder, sum(r["rows"] for r in receipts))
        ids.close()
    return _finish(workspace, folder, files, receipts, settings, time.monotonic() - began)


def _checked(
    items: Iterable[Example | Rejected], ids: _Ids, files: Sequence[str], max_rows: int | None
) -> Iterator[Example | Rejected]:
    count = 0
    for item in items:
        if isinstance(item, Example):
            ids.add(item)
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
) -> dict[str, Any] | None:
    """Write the next part, or pass over its items if it is done; None at the end."""
    done = workspace.receipt(folder, part_name(part))
    if done is not None:
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
        if len(rows) == part_rows:
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
        "tokens": sum(row["tokens"] for row in rows),
    }
    return workspace.commit(folder, name, files, facts)


def _row(example: Example, encoder: ChatEncoder) -> dict[str, Any]:
    encoded = encoder.encode(example.messages)
    return {
        "id": example.id,
        "file": example.file,
        "line": example.line,
        "messages": example.messages,
        "group": example.group,
        "answer": example.answer,
        "record": example.record,
        "tokens": len(encoded.input_ids),
        "supervised_tokens": encoded.supervised_tokens,
        "truncated": encoded.truncated,
    }


def _rejected_line(one: Rejected) -> bytes:
    fields = {"file": one.file, "line": one.line, "reason": one.reason, "text": one.text}
    return (json.dumps(fields) + "\n").encode()


def _finish(
    workspace: Workspace,
    folder: str,
    files: Sequence[str],
    receipts: list[dict[str, Any]],
    settings: ReadSettings,
    seconds: float,
) -> dict[str, Any]:
    total = {
        key: sum(r[key] for r in receipts)
        for key in ("rows", "items", "rejected", "truncated", "tokens")
    }
    lines = b"".join(
        workspace.read_bytes(f"{folder}/{part_name(part)}.rejected.jsonl")
        for part, receipt in enumerate(receipts)
        if receipt["rejected"]
    )
    where = f"{folder}/rejected.jsonl"
    if total["rejected"]:
        workspace.write_bytes(where, lines)
        first = json.loads(lines.splitlines()[0])
        reason = f"{first['file']}:{first['line']}: {first['reason']}"
        log.warning("%s: %d rows set aside, first %s", folder, total["rejected"], reason)
        if not total["rows"] or total["rejected"] > settings.max_rejected * total["items"]:
            allowed = f"more than max_rejected {settings.max_rejected:g} allows"
            raise InputError(
                f"{', '.join(files)}: {total['rejected']} of {total['items']} rows cannot be used, "
                f"{allowed if total['rows'] else 'so nothing is left'}; the first is {reason}; "
                f"all are in {workspace.location(where)}"
            )
    facts = {
        **total,
        "parts": len(receipts),
        "part_rows": settings.part_rows,
        "seconds": round(seconds, 3),
    }
    held = {"rejected.jsonl": lines} if lines else {}
    return workspace.commit(folder, STAGE_RECEIPT, held, facts)
