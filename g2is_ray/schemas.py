"""Schemas: what the columns of a row mean; a row as chat messages and as a line of JSON.

Four schemas are known, named after the column layouts people publish:

- `messages`: `messages`, a list of `{"role", "content"}`;
- `prompt-completion`: `prompt` and `completion`, each a text or a list of messages (TRL);
- `alpaca`: `instruction`, an optional `input`, and `output`;
- `sharegpt`: `conversations`, a list of `{"from", "value"}`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from g2is_ray.conversation import Conversation, Message
from g2is_ray.errors import SettingError

Row = Mapping[str, Any]

MAX_ROW_BYTES = 4 * 2**20  # about a million tokens; a longer row is a broken file

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class RowError(ValueError):
    """One row cannot be used; the message is the reason, for the user."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.text = text  # the row as it stands in the file, where no better form exists


def check_format(name: str) -> None:
    """Raise SettingError unless `name` is a schema or `auto`."""
    if name != "auto" and name not in SCHEMAS:
        choices = ", ".join(["auto", *SCHEMAS])
        raise SettingError(f"format {name!r} is not known; choose one of {choices}")


def detect(columns: Collection[str]) -> str | None:
    """Name of the schema that has these columns, None where there is none.

    `messages` goes first: some sets repeat the first question in a column `prompt`.
    """
    for name, (needed, _) in SCHEMAS.items():
        if needed <= set(columns):
            return name
    return None


def to_conversation(row: Row, schema: str) -> Conversation:
    """The row's conversation, with roles and contents as plain strings.

    Raises:
        RowError: a field is missing or of the wrong type, or there is nothing to learn
            because no assistant turn has text.
    """
    needed, convert = SCHEMAS[schema]
    for field in sorted(needed):
        if field not in row:
            raise RowError(f"the field {field!r} is missing, which the schema {schema} needs")
    messages = convert(row)
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not answers:
        raise RowError("the conversation has no assistant turn")
    if not any(answer.strip() for answer in answers):
        raise RowError("every assistant turn is empty")
    return Conversation.of(messages)


def to_record(row: Any) -> str:
    """The row in its own schema as one line of JSON.

    JSON has no word for NaN and infinities, which become null, nor for some things that
    Parquet holds: bytes become base64; dates and decimals become text.

    Raises:
        RowError: the row is not an object, too long, nested too deeply or not valid text.
    """
    try:
        try:
            record = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain)
        except ValueError:
            record = json.dumps(_finite(row), ensure_ascii=False, default=_plain)
    except RecursionError:
        raise RowError("the row is nested too deeply") from None
    if not isinstance(row, dict):
        raise RowError(f"the row is {_kind(row)}, not a JSON object", record)
    if len(record) > MAX_ROW_BYTES:
        raise RowError(f"the row is longer than {MAX_ROW_BYTES // 2**20} MiB", record)
    try:
        record.encode()
    except UnicodeEncodeError as error:
        character = ascii(record[error.start])
        raise RowError(f"the row is not valid text: {character} has no UTF-8", record) from None
    return record


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _from_messages(row: Row) -> list[Message]:
    return _turns(row["messages"], "messages", "role", "content")


def _from_sharegpt(row: Row) -> list[Message]:
    turns = _turns(row["conversations"], "conversations", "from", "value")
    for turn in turns:
        turn["role"] = _SHAREGPT_ROLES.get(turn["role"], turn["role"])
    return turns


def _from_alpaca(row: Row) -> list[Message]:
    instruction = _text(row["instruction"], "instruction")
    context = row.get("input")
    if context is not None and _text(context, "input").strip():
        instruction += "\n\n" + _text(context, "input")
    return [
        {"role": "user", "content": instruction},
        {"role": "assistant", "content": _text(row["output"], "output")},
    ]


def _from_prompt_completion(row: Row) -> list[Message]:
    messages: list[Message] = []
    for field, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row[field], list):
            messages += _turns(row[field], field, "role", "content")
        else:
            messages.append({"role": role, "content": _text(row[field], field)})
    return messages


def _turns(value: Any, field: str, role_key: str, content_key: str) -> list[Message]:
    if not isinstance(value, list):
        raise RowError(f"{field} is {_kind(value)}, not a list of messages")
    if not value:
        raise RowError(f"{field} is an empty list")
    turns = []
    for number, turn in enumerate(value):
        place = f"{field}[{number}]"
        if not isinstance(turn, dict):
            raise RowError(f"{place} is {_kind(turn)}, not an object")
        for key in (role_key, content_key):
            if key not in turn:
                raise RowError(f"{place} has no {key!r}")
        if turn.get("tool_calls"):
            # Dropping the calls would teach the model to answer without them.
            raise RowError(f"{place} calls tools, which are not supported; put them into the text")
        role = turn[role_key]
        if not isinstance(role, str) or not role:
            raise RowError(f"{place}.{role_key} is {_kind(role)}, not the name of a role")
        content = _text(turn[content_key], f"{place}.{content_key}")
        turns.append({"role": role, "content": content})
    return turns


def _text(value: Any, place: str) -> str:
    """A string, or the joined texts of a multi-modal list that holds nothing but text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowError(f"{place} is {_kind(value)}, not text")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = str(part.get("type"))[:40] if isinstance(part, dict) else _kind(part)
            raise RowError(f"{place} has a part that is not text but {kind!r}")
        if not isinstance(part.get("text"), str):
            raise RowError(f"{place} has a text part without text")
        texts.append(part["text"])
    return "".join(texts)


def _kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "null"
    if value == "":
        return "an empty string"
    if isinstance(value, bool):
        return "a boolean"
    names: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "no text")


SCHEMAS: dict[str, tuple[frozenset[str], Callable[[Row], list[Message]]]] = {
    "messages": (frozenset({"messages"}), _from_messages),
    "prompt-completion": (frozenset({"prompt", "completion"}), _from_prompt_completion),
    "alpaca": (frozenset({"instruction", "output"}), _from_alpaca),
    "sharegpt": (frozenset({"conversations"}), _from_sharegpt),
}
"""Needed columns and the conversion of each schema, in the order in which they are tried."""
