"""Columns outside of a row's schema that change its conversation or its training.

Trainers give such columns a meaning: LLaMA-Factory `system` and `history`, TRL `tools` and
`chat_template_kwargs`, and all of them the columns of preference data. Each such column is used, or
its row is refused, or the log names it as ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from g2is_ray.data.messages import Turns, read_turns
from g2is_ray.data.tools import definitions_of
from g2is_ray.data.values import RowError, as_json, is_blank, kind, text_of, unpack

Row = Mapping[str, Any]

_SYSTEM = ("system", "system_prompt")
_TOOLS = ("tools", "functions")
_CALLS = ("tool_calls", "function_call", "function_calls")
_PREFERENCE = ("rejected", "rejected_response", "rejected_messages")
_LABELS = ("label", "kto_tag")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_THINKING = "enable_thinking"
_WEIGHTS = ("weight", "loss_mask", "train", "trainable", "loss_scale", "weights")
_UNUSED = {
    *_WEIGHTS,
    *("mask", "completion_mask", "assistant_masks", "chat_template", "documents", "context"),
    *("reasoning", "reasoning_content", "thinking", "cot", "rationale"),
}
_MEANINGFUL = {
    *(*_SYSTEM, *_TOOLS, *_CALLS, *_PREFERENCE, *_LABELS, *_MEDIA, *_UNUSED),
    *("history", "chat_template_kwargs", _THINKING),
}
_RESERVED = {
    *("messages", "conversation", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "padding", "truncation", "max_length", "tokenizer_kwargs"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask"),
}
"""Arguments of `apply_chat_template` that are not variables of the template."""


def has_meaningful(row: Row) -> bool:
    """Whether a row has a column that this module handles."""
    return not _MEANINGFUL.isdisjoint(row)


def refuse_unlearnable(row: Row) -> None:
    """Raise RowError if a column says that the row is not trained on or cannot be text.

    Raises:
        RowError: the row is preference data, or has media, weights of tokens or calls in columns.
    """
    for column in _LABELS:
        value = row.get(column)
        if value is False or (isinstance(value, str) and value.strip().lower() == "false"):
            raise RowError(
                f"{column} is false, which marks an answer not to be imitated (preference data); "
                "remove such rows"
            )
    for column in _WEIGHTS:
        value = unpack(row.get(column))
        if isinstance(value, list) and value:
            raise RowError(f"the row has a list {column}; put a flag into each message instead")
        if isinstance(value, bool | int | float) and not value:
            raise RowError(f"{column} is {value}, so the row is not to be trained on; remove it")
    for column in _PREFERENCE:
        value = row.get(column)
        if isinstance(value, bool) or is_blank(value):
            continue
        if row.get("messages") != row.get("chosen", ""):  # as UltraFeedback repeats it
            raise RowError(
                f"the row has a column {column}: preference data is not trained on; keep the "
                "chosen answer alone"
            )
    for column in _MEDIA:
        if not isinstance(row.get(column), bool) and not is_blank(row.get(column)):
            raise RowError(f"the row has a column {column}, and only text can be trained on")
    for column in _CALLS:
        if not is_blank(row.get(column)):
            raise RowError(
                f"the row has a column {column}; put its calls into the assistant's message"
            )


def with_context(row: Row, turns: Turns, schema: str) -> Turns:
    """The turns preceded by the turns of the columns `system` and `history`.

    Raises:
        RowError: a column has the wrong type, or contradicts the turns.
    """
    before = Turns()
    for column in _SYSTEM:
        if is_blank(row.get(column)):
            continue
        text = text_of(row[column], column)
        first = (before.messages or turns.messages)[0]
        if first["role"] != "system":
            before.add("system", text)
        elif first["content"].strip() != text.strip():
            raise RowError(
                f"the column {column} and the conversation have different system messages; "
                "remove one"
            )
    if not is_blank(row.get("history")):
        if schema in ("messages", "sharegpt"):
            raise RowError("the row has a column history beside its messages; put it into them")
        before.extend(_history(row["history"]), context=schema == "prompt-completion")
    if before.messages:
        before.extend(turns)
        return before
    return turns


def _history(value: Any) -> Turns:
    """Earlier turns, from messages or from LLaMA-Factory's pairs of question and answer."""
    pairs = unpack(value)
    if not isinstance(pairs, list) or not all(isinstance(one, list | tuple) for one in pairs):
        return read_turns(pairs, "history")
    turns = Turns()
    for number, pair in enumerate(pairs):
        if len(pair) != 2:
            raise RowError(f"history[{number}] is not a pair of question and answer")
        turns.add("user", text_of(pair[0], f"history[{number}][0]"))
        turns.add("assistant", text_of(pair[1], f"history[{number}][1]"))
        if not turns.messages[-1]["content"].strip():
            turns.supervised[-1] = False
    return turns


def template_of(row: Row) -> Any:
    """Variables of the chat template that the row sets, as a dictionary of JSON values.

    Raises:
        RowError: a column has the wrong type, or sets a reserved variable.
    """
    found: dict[str, Any] = {}
    if not is_blank(row.get("chat_template_kwargs")):
        given = unpack(row["chat_template_kwargs"])
        if not isinstance(given, dict):
            raise RowError(f"chat_template_kwargs is {kind(given)}, not an object")
        for name, value in given.items():
            if name in _RESERVED or not isinstance(name, str):
                raise RowError(f"chat_template_kwargs may not set {str(name)[:40]!a}")
            if value is not None:
                found[name] = value
    if isinstance(row.get(_THINKING), bool):  # verl's column
        found.setdefault(_THINKING, row[_THINKING])
    for column in _TOOLS:
        tools = definitions_of(row.get(column), column)
        if tools and found.setdefault("tools", tools) != tools:
            raise RowError(f"the row defines tools twice, in {column} too; remove one")
    return json.loads(as_json(found)) if found else found


def unused(row: Row) -> list[str]:
    """Descriptions of the columns that some trainer uses and that are ignored here."""
    names = [name for name in _UNUSED if not is_blank(row.get(name)) and not _is_one(row[name])]
    names += [name for name in _LABELS if type(row.get(name)) is int and row[name] in (0, 1)]
    return [f"the column {name!r}" for name in names]


def _is_one(value: Any) -> bool:
    """Whether a weight or mask is 1, the default of every row."""
    return isinstance(value, int | float) and value == 1
