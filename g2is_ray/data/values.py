"""Values: conversion of a row's fields to texts, lists, flags and objects.

Parquet and JSON files encode a value in several ways: a list as a list, JSON text or bytes; a flag
as a boolean, 0 and 1, or a word.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

MAX_ROW_BYTES = 4 * 2**20  # about a million tokens; a longer row is a broken file

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_TEXT_PARTS = ("text", "input_text", "output_text")  # chat completions, OpenAI's responses


class RowError(ValueError):
    """One row cannot be used; the message is the reason, for the user."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.text = text  # the row as it stands in the file, where no better form exists


def as_json(value: Any) -> str:
    """The value as one line of JSON.

    Values that JSON cannot represent are converted: NaN and infinities to null, bytes to text or,
    if they are not UTF-8, to base64, and dates and decimals to text.

    Raises:
        RowError: the value is nested too deeply.
    """
    try:
        try:
            return _ENCODER.encode(value)
        except (ValueError, TypeError):
            return json.dumps(_finite(value), ensure_ascii=False, default=_plain)
    except RecursionError:
        raise RowError("the row is nested too deeply") from None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _key(key: Any) -> Any:
    return key if isinstance(key, str | int | None) else str(key)


def _plain(value: Any) -> str:
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain)


def unpack(value: Any) -> Any:
    """The list or object parsed from JSON text or bytes; other values unchanged."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return value
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        found = json.loads(value, strict=False, parse_constant=lambda _: None)
        json.dumps(found, ensure_ascii=False).encode()  # refuses half a surrogate pair
    except (ValueError, RecursionError):
        return value
    return found


def text_of(value: Any, place: str) -> str:
    """The text of a string, an integer, or a list of text parts, which are joined.

    Raises:
        RowError: the value is something else; names `place`.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise RowError(f"{place} is not UTF-8") from None
    if not isinstance(value, list):
        remedy = "; write it as a string" if isinstance(value, bool | float) else ""
        raise RowError(f"{place} is {kind(value)}, not text{remedy}")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS:
            what = str(part.get("type"))[:40] if isinstance(part, dict) else kind(part)
            raise RowError(f"{place} has a part that is not text but {what!r}")
        if not isinstance(part.get("text"), str):
            raise RowError(f"{place} has a text part without text")
        texts.append(part["text"])
    return "".join(texts)


def flag(value: Any, place: str) -> bool | None:
    """A boolean from any spelling of yes or no; None if the value is blank.

    Raises:
        RowError: the value is something else, such as a weight of 0.5.
    """
    if is_blank(value):
        return None
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    shown = f"{value:g}" if isinstance(value, float) else kind(value)
    raise RowError(f"{place} is {shown}; only yes or no (1 or 0) can be honored")


def is_blank(value: Any) -> bool:
    """Whether a field is blank: null, empty, all nulls, or JSON text of an empty value."""
    if isinstance(value, str | bytes):
        value = value.strip()
        return not value or value in ("[]", "{}", "null", b"[]", b"{}", b"null")
    if isinstance(value, dict):
        value = list(value.values())
    return value is None or (isinstance(value, list) and all(one is None for one in value))


def without_nulls(value: Any) -> Any:
    """The value without nulls in objects.

    A Parquet file gives every object of a column the keys of all of them. TRL removes the
    nulls from tool calls and tools likewise.
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def kind(value: Any) -> str:
    """The JSON type of a value, with its article."""
    if value is None:
        return "null"
    if value == "":
        return "an empty string"
    if isinstance(value, bool):
        return "a boolean"
    names: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "no text")
