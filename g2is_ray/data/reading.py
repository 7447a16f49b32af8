"""Reading: instruction examples as a stream from JSON lines, JSON, Parquet, Arrow and the hub.

Every path goes through fsspec, so local files, s3://, gs://, https:// and memory:// work in the
same way. A row that cannot be used becomes a `Rejected` with its reason; a file that cannot be read
to its end stops the reading. Ignored keys and columns are counted and logged once per file. Memory
does not grow with the pool.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from g2is_ray.chat.conversation import Conversation, Message
from g2is_ray.data import containers, schemas
from g2is_ray.data.sources import clip, container
from g2is_ray.data.values import RowError, unpack
from g2is_ray.errors import InputError

log = logging.getLogger(__name__)

_TEXT_CHARACTERS = 2000
_MAX_IGNORED = 20  # kinds of ignored keys per file that are counted separately


@dataclass(frozen=True, kw_only=True)
class Example:
    """One usable row."""

    id: str  # the row's own "id", or "<file>:<line>"
    conversation: Conversation  # at least one turn is trained on
    group: str  # label for reports only: the row's source column or the file's stem
    answer: str | None  # the reference that predictions are compared with, if the row has one
    record: str  # the row in its own schema as one line of JSON; NaN and infinities as null
    file: str
    line: int  # line of JSON lines, otherwise 1-based number of the row

    @property
    def messages(self) -> list[Message]:
        return self.conversation.messages


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """One row that cannot be used, and why."""

    file: str
    line: int
    reason: str
    text: str  # first 2,000 characters of the row


@dataclass
class _Ignored:
    """Counts of ignored keys and columns of one file, with the line of the first of each."""

    file: str
    counts: dict[str, list[int]] = field(default_factory=dict)  # number of rows, first line

    def add(self, things: Iterable[str], line: int) -> None:
        for thing in things:
            if thing not in self.counts and len(self.counts) >= _MAX_IGNORED:
                thing = "further message keys"
            self.counts.setdefault(thing, [0, line])[0] += 1

    def log(self) -> None:
        for thing, (rows, line) in self.counts.items():
            log.warning(
                "%s: %d rows have something that is ignored: %s (first %s:%d)",
                *(self.file, rows, thing, self.file, line),
            )


def read_examples(
    files: Sequence[str],
    *,
    format: str = "auto",
    source_field: str = "source",
    supervise: Literal["all", "last"] = "all",
) -> Iterator[Example | Rejected]:
    """Rows of the files, one after another, in the given order.

    Args:
        files: as `expand` returns them.
        format: name of a schema, or `auto` to tell it from each row's own columns.
        source_field: column with the label for reports.
        supervise: assistant turns to train on: all, or the last of those that the row allows.

    Raises:
        SettingError: at the call, if the format is not known.
        InputError: while reading, if a file is missing, damaged or of no known schema, or all of
            them are empty.
    """
    schemas.check_format(format)
    return _read(files, None if format == "auto" else format, source_field, supervise)


def _read(
    files: Sequence[str], schema: str | None, source_field: str, supervise: str
) -> Iterator[Example | Rejected]:
    empty = []
    for file in files:
        last: str | None = None
        ignored = _Ignored(file)
        things: set[str] = set()
        line = 0
        for line, row in containers.rows(file):
            text = ""
            try:
                if isinstance(row, RowError):
                    raise row
                if isinstance(row, str):
                    row = unpack(row)  # a row that was written as JSON twice
                text = schemas.to_record(row)
                last = schema or schemas.detect(row) or last or _refuse(row, file)
                conversation = schemas.to_conversation(row, last, things)
                if supervise == "last":
                    conversation = conversation.only_last()
                ignored.add(things, line)
                things.clear()
            except RowError as bad:
                text = (bad.text or text)[:_TEXT_CHARACTERS]
                text = text.encode("utf-8", "backslashreplace").decode()[:_TEXT_CHARACTERS]
                yield Rejected(file=file, line=line, reason=str(bad), text=text)
            else:
                yield _example(row, conversation, text, source_field, file, line)
        ignored.log()
        if not line:
            empty.append(file)
            if len(files) > 1:
                log.warning("%s: the file is empty; skipping it", file)
    if len(empty) == len(files) > 0:
        raise InputError(f"{clip(', '.join(empty))}: the file is empty; remove it or fill it")


def _refuse(row: dict[str, Any], file: str) -> str:
    columns = ", ".join(map(repr, row)) or "none"
    raise InputError(
        f"{file}: the columns ({clip(columns)}) fit no schema; messages needs 'messages', "
        "prompt-completion 'prompt' and 'completion', alpaca 'instruction' and 'output', "
        f"sharegpt 'conversations'; {schemas.hint(row)}"
    )


def _example(
    row: dict[str, Any],
    conversation: Conversation,
    record: str,
    source_field: str,
    file: str,
    line: int,
) -> Example:
    own_id, group, answer = row.get("id"), row.get(source_field), row.get("answer")
    return Example(
        id=_label(own_id) or f"{file}:{line}",
        conversation=conversation,
        group=_label(group) or container(file)[0],
        answer=str(answer) if isinstance(answer, str | int | float) else None,
        record=record,
        file=file,
        line=line,
    )


def _label(value: Any) -> str:
    """A string or integer as a string; an empty string for other values."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
