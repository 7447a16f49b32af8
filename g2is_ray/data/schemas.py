"""Schemas: conversion of a row's columns to a conversation and to a line of JSON.

There are four schemas, named after published column layouts:

- `messages`: `messages`, a list of `{"role", "content"}`;
- `prompt-completion`: `prompt` and `completion`, each a text or a list of messages (TRL);
- `alpaca`: `instruction`, an optional `input`, and `output`;
- `sharegpt`: `conversations`, a list of `{"from", "value"}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from g2is_ray.chat.conversation import Conversation
from g2is_ray.data import columns
from g2is_ray.data.messages import Turns, is_turns, looks_like_turn, read_turns
from g2is_ray.data.values import MAX_ROW_BYTES, RowError, as_json, kind, text_of
from g2is_ray.errors import SettingError

Row = Mapping[str, Any]

_NO_INPUT = re.compile(r"\s*(<\s*no\s?input\s*>)?\s*", re.IGNORECASE)  # self-instruct's mark


def check_format(name: str) -> None:
    """Raise SettingError unless `name` is a schema or `auto`."""
    if name != "auto" and name not in SCHEMAS:
        choices = ", ".join(["auto", *SCHEMAS])
        raise SettingError(f"format {name!r} is not known; choose one of {choices}")


def detect(row: Row) -> str | None:
    """Name of the schema whose columns the row has; None if it fits no schema.

    A file may hold rows of several schemas; in Parquet, each then has nulls in the columns of
    the others. `messages` goes first: some sets repeat the first question in a column `prompt`.
    """
    for name, (needed, _) in SCHEMAS.items():
        if all(row.get(column) is not None for column in needed):
            return name
    return next((name for name, (needed, _) in SCHEMAS.items() if needed <= row.keys()), None)


def hint(row: Row) -> str:
    """A guess at the format of a row that fits no schema, with a remedy; ends a sentence."""
    if row.keys() & {"rejected", "non_preferred_output"}:
        return (
            "it is preference data, which is not trained on; keep the chosen answers alone, as "
            "completion"
        )
    if looks_like_turn(row):
        return 'a row seems to be one message; write all of a conversation as {"messages": […]}'
    for name, value in row.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and detect(first):
            return f"the rows seem to be in its list {name!r}; write that list alone"
    return "rename the columns"


def to_conversation(row: Row, schema: str, ignored: set[str] | None = None) -> Conversation:
    """The row's conversation, with roles and contents as plain strings.

    Args:
        ignored: set to which descriptions of ignored keys and columns are added.

    Raises:
        RowError: a field is missing, has the wrong type or is not supported, or no assistant turn
            has text or calls.
    """
    needed, convert = SCHEMAS[schema]
    for column in sorted(needed):
        if column not in row:
            raise RowError(f"the field {column!r} is missing, which the schema {schema} needs")
    template: dict[str, Any] = {}
    more = columns.has_meaningful(row)
    if more:
        columns.refuse_unlearnable(row)
    turns = convert(row)
    if more:
        template = columns.template_of(row)
        turns = columns.with_context(row, turns, schema)
        turns.ignored.update(columns.unused(row))
    if not any(turns.supervised):
        raise RowError(_nothing_to_learn(turns))
    if ignored is not None:
        ignored |= turns.ignored
    return Conversation(messages=turns.messages, supervised=turns.supervised, template=template)


def _nothing_to_learn(turns: Turns) -> str:
    answers = [message for message in turns.messages if message["role"] == "assistant"]
    if not answers:
        roles = dict.fromkeys(ascii(message["role"][:40]) for message in turns.messages)
        seen = ", ".join(list(roles)[:8])
        return f"the conversation has no assistant turn; its roles are {seen}"
    if any(message["content"].strip() or len(message) > 2 for message in answers):
        return "no assistant turn is to be trained on, as the row itself says"
    return "every assistant turn is empty"


def to_record(row: Any) -> str:
    """The row in its own schema as one line of JSON; `as_json` says how.

    Raises:
        RowError: the row is not an object, too long, nested too deeply or not valid text.
    """
    record = as_json(row)
    if not isinstance(row, dict):
        raise RowError(f"the row is {kind(row)}, not a JSON object", record)
    if len(record) > MAX_ROW_BYTES:
        raise RowError(f"the row is longer than {MAX_ROW_BYTES // 2**20} MiB", record)
    try:
        record.encode()
    except UnicodeEncodeError as error:
        character = ascii(record[error.start])
        raise RowError(f"the row is not valid text: {character} has no UTF-8", record) from None
    return record


def _from_messages(row: Row) -> Turns:
    return read_turns(row["messages"], "messages")


def _from_sharegpt(row: Row) -> Turns:
    return read_turns(row["conversations"], "conversations")


def _from_alpaca(row: Row) -> Turns:
    instruction = text_of(row["instruction"], "instruction")
    context = row.get("input")
    if context is not None:
        context = text_of(context, "input")
        if not _NO_INPUT.fullmatch(context):
            instruction += "\n\n" + context
    turns = Turns()
    turns.add("user", instruction)
    _add_answer(turns, row["output"], "output")
    return turns


def _from_prompt_completion(row: Row) -> Turns:
    """Turns of a prompt and a completion; only the completion is trained on, as in TRL."""
    turns = Turns()
    if is_turns(row["prompt"]):
        turns.extend(read_turns(row["prompt"], "prompt"), context=True)
    else:
        turns.add("user", text_of(row["prompt"], "prompt"))
    if is_turns(row["completion"]):
        turns.extend(read_turns(row["completion"], "completion"))
    else:
        _add_answer(turns, row["completion"], "completion")
    return turns


def _add_answer(turns: Turns, value: Any, column: str) -> None:
    answer = text_of(value, column)
    turns.add("assistant", answer)
    turns.supervised[-1] = bool(answer.strip())


SCHEMAS: dict[str, tuple[frozenset[str], Callable[[Row], Turns]]] = {
    "messages": (frozenset({"messages"}), _from_messages),
    "prompt-completion": (frozenset({"prompt", "completion"}), _from_prompt_completion),
    "alpaca": (frozenset({"instruction", "output"}), _from_alpaca),
    "sharegpt": (frozenset({"conversations"}), _from_sharegpt),
}
"""Required columns and conversion function of each schema, in the order of detection."""
