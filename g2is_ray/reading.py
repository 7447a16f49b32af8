"""Reading: instruction examples as a stream from JSON lines, JSON, Parquet and the hub.

Every path goes through fsspec, so local files, s3://, gs://, https:// and memory:// are
read alike. A row that cannot be used is handed on as `Rejected` with its reason; a file
that cannot be read to its end stops the reading. Memory does not grow with the pool.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from g2is_ray import schemas
from g2is_ray.conversation import Conversation, Message
from g2is_ray.errors import InputError
from g2is_ray.remote import open_url
from g2is_ray.schemas import MAX_ROW_BYTES, RowError
from g2is_ray.sources import HUB, READABLE, SUFFIXES, clip, container, is_remote, one_line

_TEXT_CHARACTERS = 2000
_BATCH_ROWS, _BATCH_BYTES = 256, 64 * 2**20
_WINDOW = 2**20  # characters of a JSON array taken at a time
_BLANK = re.compile(r"[ \t\r\n]*")
# Lets raw control characters in strings pass, and reads Python's NaN and Infinity as null.
_DECODER = json.JSONDecoder(strict=False, parse_constant=lambda _: None)
_BROKEN = (OSError, EOFError, zlib.error, pa.ArrowException)  # what a damaged file raises
_BOM = b"\xef\xbb\xbf"

_Rows = Iterator[tuple[int, Any]]  # line or row number, parsed row or RowError


@dataclass(frozen=True, kw_only=True)
class Example:
    """One usable row."""

    id: str  # the row's own "id", or "<file>:<line>"
    conversation: Conversation  # at least one turn is trained on
    group: str  # label for reports only: the row's source column or the file's stem
    answer: str | None  # what a prediction is compared with, where the row has it
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


def read_examples(
    files: Sequence[str], *, format: str = "auto", source_field: str = "source"
) -> Iterator[Example | Rejected]:
    """Rows of the files, one after another, in the order they are given.

    Args:
        files: as `expand` returns them.
        format: name of a schema, or `auto` to tell it from the columns of each file's first
            row that can be parsed.
        source_field: column with the label for reports.

    Raises:
        SettingError: at the call, if the format is not known.
        InputError: while reading, if a file is missing, empty, damaged or of no known schema.
    """
    schemas.check_format(format)
    return _read(files, None if format == "auto" else format, source_field)


def _read(
    files: Sequence[str], schema: str | None, source_field: str
) -> Iterator[Example | Rejected]:
    for file in files:
        name = schema
        empty = True
        for line, row in _rows(file):
            empty = False
            text = ""
            try:
                if isinstance(row, RowError):
                    raise row
                text = schemas.to_record(row)
                name = name or _detect(row, file)
                example = _example(row, text, name, source_field, file, line)
            except RowError as bad:
                text = (bad.text or text)[:_TEXT_CHARACTERS]
                text = text.encode("utf-8", "backslashreplace").decode()[:_TEXT_CHARACTERS]
                yield Rejected(file=file, line=line, reason=str(bad), text=text)
            else:
                yield example
        if empty:
            raise InputError(f"{file}: the file is empty; remove it or fill it")


def _detect(row: dict[str, Any], file: str) -> str:
    name = schemas.detect(row)
    if name is None:
        columns = ", ".join(map(repr, row)) or "none"
        raise InputError(
            f"{file}: the columns ({clip(columns)}) fit no schema; messages needs 'messages', "
            "prompt-completion 'prompt' and 'completion', alpaca 'instruction' and 'output', "
            "sharegpt 'conversations'; rename the columns"
        )
    return name


def _example(
    row: dict[str, Any], record: str, schema: str, source_field: str, file: str, line: int
) -> Example:
    own_id, group, answer = row.get("id"), row.get(source_field), row.get("answer")
    return Example(
        id=_label(own_id) or f"{file}:{line}",
        conversation=schemas.to_conversation(row, schema),
        group=_label(group) or container(file)[0],
        answer=str(answer) if isinstance(answer, str | int | float) else None,
        record=record,
        file=file,
        line=line,
    )


def _label(value: Any) -> str:
    """A string or integer as a string, anything else as an empty one."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _rows(file: str) -> _Rows:
    """Parsed rows of one file with their numbers; a RowError where a row cannot be parsed."""
    if HUB.fullmatch(file):
        yield from _hub_rows(file)
        return
    _, suffix, compression = container(file)
    if suffix not in SUFFIXES:
        raise InputError(f"{file}: is not a readable file; readable are {READABLE}")
    try:
        fs, path = open_url(file)
        with fs.open(path, "rb") as raw:
            if suffix == ".parquet":
                yield from _parquet_rows(raw)
                return
            stream = _decompressed(raw, compression)
            if stream.peek(3).startswith(_BOM):
                stream.read(3)
            start = stream.peek().lstrip() if suffix == ".json" else b""
            if start.startswith(b"["):
                yield from _array_rows(stream, file)
                return
            if start.partition(b"\n")[0].strip() == b"{":
                raise InputError(
                    f"{file}: is one JSON object over several lines; write a JSON array of rows, "
                    "or one row a line"
                )
            yield from _line_rows(stream)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; check the path") from None
    except Exception as error:
        if isinstance(error, InputError) or not (isinstance(error, _BROKEN) or is_remote(file)):
            raise
        raise InputError(
            f"{file}: cannot be read to its end ({one_line(error)}); it is truncated, damaged or "
            "out of reach: fetch it again"
        ) from error


def _decompressed(raw: Any, compression: str) -> io.BufferedReader:
    if compression == ".gz":
        raw = gzip.GzipFile(fileobj=raw)
    elif compression == ".zst":
        # Not the zstandard library (nor fsspec, which uses it): its reader takes a truncated
        # file for a complete one. Arrow's raises.
        raw = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    return io.BufferedReader(raw, 2**20)


def _line_rows(stream: io.BufferedReader) -> _Rows:
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            start = line[: 4 * _TEXT_CHARACTERS].decode("utf-8", "backslashreplace")
            while line and not line.endswith(b"\n"):
                line = stream.readline(2**20)
            reason = f"the line is longer than {MAX_ROW_BYTES // 2**20} MiB"
            yield number, RowError(reason, start)
        elif line.strip():
            yield number, _parse(line.rstrip(b"\r\n"))


def _parse(line: bytes) -> Any:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        reason = f"byte {error.start + 1} of the line is not UTF-8"
        return RowError(reason, line.decode("utf-8", "backslashreplace"))
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return RowError(f"the line is not JSON ({error.msg} at column {error.colno})", text)
    except RecursionError:
        return RowError("the row is nested too deeply", text)
    except ValueError as error:  # an integer of thousands of digits
        return RowError(f"the line cannot be parsed ({one_line(error)})", text)


def _array_rows(stream: io.BufferedReader, file: str) -> _Rows:
    """Rows of a JSON array, parsed one at a time in a window of the text.

    Not ijson: its yajl backend stops at half a surrogate pair (or puts "?") and knows no NaN,
    so that one row would cost the file; its Python backend gathers the file in memory.
    """
    # Bytes that are not UTF-8 become lone surrogates, for which their row is rejected.
    text = io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="")
    window = text.read(_WINDOW)
    at = window.index("[") + 1
    passed = number = 0  # characters before the window; rows before `at`
    first = _blank(window, at)
    closed = window[first : first + 1] == "]"
    at = first + closed
    while not closed:
        try:
            row, after, closed = _element(window, at)
        except json.JSONDecodeError as error:
            size = len(window) - at
            more = text.read(max(_WINDOW, size)) if size <= MAX_ROW_BYTES else ""
            if not more:
                raise InputError(
                    f"{file}: row {number + 1} of the array is not JSON, or longer than "
                    f"{MAX_ROW_BYTES // 2**20} MiB ({error.msg} at character "
                    f"{passed + error.pos + 1:,}), and nothing after it can be read; repair it"
                ) from None
            passed += at
            window, at = window[at:] + more, 0
        except (RecursionError, ValueError) as error:
            raise InputError(
                f"{file}: row {number + 1} of the array cannot be parsed ({one_line(error)}), and "
                "nothing after it can be read; remove it"
            ) from None
        else:
            at = after
            number += 1
            yield number, row
    if window[at:].strip() or text.read(_WINDOW).strip():
        raise InputError(f"{file}: text follows the end of the array; write one array a file")


def _element(window: str, at: int) -> tuple[Any, int, bool]:
    """The value at `at`, where the next one starts, and whether it was the last one."""
    row, end = _DECODER.raw_decode(window, _blank(window, at))
    end = _blank(window, end)
    if window[end : end + 1] not in (",", "]"):
        raise json.JSONDecodeError("Expecting ',' or ']'", window, end)
    return row, end + 1, window[end] == "]"


def _blank(window: str, at: int) -> int:
    """Where the white space that may start at `at` ends."""
    match = _BLANK.match(window, at)
    return match.end() if match else at


def _parquet_rows(raw: Any) -> _Rows:
    number = 0
    metadata = pq.read_metadata(raw)
    columns = map(metadata.schema.column, range(metadata.num_columns))
    texts = [c.path for c in columns if c.physical_type == "BYTE_ARRAY" and c.scale < 0]
    # Without pre-buffering, a large row group is not held as a whole. Texts stay in the file's
    # dictionaries, since a file of kilobytes may have one of gigabytes in every row.
    table = pq.ParquetFile(
        raw, metadata=metadata, pre_buffer=False, buffer_size=2**20, read_dictionary=texts
    )
    for batch in table.iter_batches(_BATCH_ROWS):
        for row in _batch_rows(batch):
            number += 1
            yield number, row


def _batch_rows(batch: pa.RecordBatch) -> Iterator[Any]:
    size = sum(map(_decoded_bytes, batch.columns))
    if batch.num_rows == 1 and size > MAX_ROW_BYTES:
        yield RowError(f"the row is longer than {MAX_ROW_BYTES // 2**20} MiB")
        return
    if size <= _BATCH_BYTES:
        try:
            yield from batch.to_pylist()
        except UnicodeDecodeError as error:
            if batch.num_rows == 1:
                yield RowError(f"a text is not UTF-8 ({one_line(error)})")
                return
        else:
            return
    half = batch.num_rows // 2
    yield from _batch_rows(batch.slice(0, half))
    yield from _batch_rows(batch.slice(half))


def _decoded_bytes(array: Any) -> int:
    """Bytes of an array, where a text in its dictionary counts as often as it is used."""
    if pa.types.is_dictionary(array.type):
        lengths = pc.take(pc.binary_length(array.dictionary), array.indices)
        return pc.sum(lengths).as_py() or 0
    if pa.types.is_struct(array.type):
        return sum(map(_decoded_bytes, array.flatten()))
    if pa.types.is_map(array.type):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        parts = (array.keys, array.items)
        return sum(_decoded_bytes(part.slice(first, last - first)) for part in parts)
    if any(is_kind(array.type) for is_kind in _LISTS):
        return _decoded_bytes(array.flatten())
    return int(array.nbytes)


_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def _hub_rows(file: str) -> _Rows:
    from datasets import load_dataset  # slow to import, and few need it

    hub = HUB.fullmatch(file)
    assert hub is not None
    try:
        rows = load_dataset(hub["name"], split=hub["split"] or "train", streaming=True)
        yield from enumerate(rows, start=1)
    except Exception as error:  # of any type: the library passes on those of its many parts
        raise InputError(
            f"{file}: cannot be read from the hub ({type(error).__name__}: {one_line(error)}); "
            "check the name, the split and the network"
        ) from error
