"""JSON rows: from JSON lines and JSON arrays, parsed one at a time."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

from g2is_ray.data.sources import one_line
from g2is_ray.data.values import MAX_ROW_BYTES, RowError
from g2is_ray.errors import InputError

Rows = Iterator[tuple[int, Any]]
"""Pairs of a line or row number, counted from 1, and the parsed row or a RowError."""

BOM = b"\xef\xbb\xbf"

_START_BYTES = 8000  # of a too long line, for the list of rejected rows
_WINDOW = 2**20  # characters of a JSON array read at a time
_BLANK = re.compile(r"[ \t\r\n]*")
# Accepts raw control characters in strings, and reads Python's NaN and Infinity as null.
_DECODER = json.JSONDecoder(strict=False, parse_constant=lambda _: None)


def line_rows(stream: io.BufferedReader) -> Rows:
    """Rows of JSON lines; any line may begin with a byte order mark, as in concatenated files."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            start = line[:_START_BYTES].decode("utf-8", "backslashreplace")
            while line and not line.endswith(b"\n"):
                line = stream.readline(2**20)
            yield (
                number,
                RowError(
                    f"the line is longer than {MAX_ROW_BYTES // 2**20} MiB; write one row a line",
                    start,
                ),
            )
            continue
        if line.startswith(BOM):
            line = line.removeprefix(BOM)
        if line.strip():
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
        if error.msg == "Extra data" and text[error.pos] in "{[":
            return RowError("several JSON values are on one line; write one row a line", text)
        return RowError(f"the line is not JSON ({error.msg} at column {error.colno})", text)
    except RecursionError:
        return RowError("the row is nested too deeply", text)
    except ValueError as error:  # an integer of thousands of digits
        return RowError(f"the line cannot be parsed ({one_line(error)})", text)


def array_rows(
    stream: io.BufferedReader,
    file: str,
    *,
    characters: int = _WINDOW,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> Rows:
    """Rows of a JSON array, parsed one at a time in a window of the text.

    ijson does not fit: its yajl backend stops at half a surrogate pair (or writes "?") and rejects
    NaN, so one row would cost the file; its Python backend holds the whole file in memory.

    Args:
        file: name of the file in messages.
        characters: characters read at a time.
        max_row_bytes: longest row; a longer row stops the reading.

    Raises:
        InputError: while reading, if the text is no JSON array or a row is too long.
    """
    # Bytes that are not UTF-8 become lone surrogates, and a row with those is rejected.
    text = io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="")
    window = text.read(characters)
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
            more = text.read(max(characters, size)) if size <= max_row_bytes else ""
            if not more:
                raise InputError(
                    f"{file}: row {number + 1} of the array is not JSON, or longer than "
                    f"{max_row_bytes // 2**20} MiB ({error.msg} at character "
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
    if window[at:].strip() or text.read(characters).strip():
        raise InputError(f"{file}: text follows the end of the array; write one array a file")


def _element(window: str, at: int) -> tuple[Any, int, bool]:
    """The value at `at`, the position after it, and whether it ends the array."""
    row, end = _DECODER.raw_decode(window, _blank(window, at))
    end = _blank(window, end)
    if window[end : end + 1] not in (",", "]"):
        raise json.JSONDecodeError("Expecting ',' or ']'", window, end)
    return row, end + 1, window[end] == "]"


def _blank(window: str, at: int) -> int:
    """Position after the white space at `at`."""
    match = _BLANK.match(window, at)
    return match.end() if match else at
