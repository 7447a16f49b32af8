"""Messages: conversion of a row's turns to messages of a chat template with training flags.

The keys of each turn are detected, because `messages` and `conversations` hold `role` and
`content` in some files, and `from` and `value` in others.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from g2is_ray.chat.conversation import Message
from g2is_ray.data.tools import calls_of
from g2is_ray.data.values import RowError, flag, is_blank, kind, text_of, unpack

_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value", "text")

_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "chatbot", "ai"),
    "tool": ("tool", "observation", "function", "function_response", "tool_response"),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
_CALLERS = ("function_call", "tool_call", "tool_calls")  # roles whose content is a call

_TRAINED = ("weight", "train", "training", "trainable", "loss", "loss_mask", "loss_scale")
_UNTRAINED = ("is_masked", "masked", "ignore_loss")
_REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")
_CALLS = ("tool_calls", "tool_call", "function_call", "function_calls")
_PASSED = ("name", "tool_call_id")  # on to the template
_REFUSED = {
    "train_detail": "trains on a part of the message; split the message, or remove the key",
    "mask": "may mean that the turn is trained on or that it is not; rename it to train",
    "functions": "defines tools; put them into the column tools of the row",
    "tools": "defines tools; put them into the column tools of the row",
    "refusal": "holds what the assistant said instead of an answer; put it into the content",
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "is not text"),
}
_PROVENANCE = {
    *("id", "uuid", "message_id", "parent_id", "conversation_id", "parent", "children", "idx"),
    *("index", "turn", "turn_id", "turn_identifier", "hash", "hashed_ip", "sha", "source", "model"),
    *("model_name", "created", "created_at", "create_time", "created_date", "timestamp", "time"),
    *("date", "updated_at", "lang", "language", "country", "state", "header", "openai", "toxic"),
    *("toxicity", "redacted", "moderation", "detoxify", "usage", "tokens", "token_count", "length"),
    *("num_tokens", "n_tokens", "temperature", "top_p", "system_fingerprint", "finish_reason"),
    *("stop_reason", "logprobs", "score", "scores", "rating", "rank", "labels", "metadata", "meta"),
    *("annotations", "citations", "html", "markdown", "user_id", "username", "url", "license"),
}
"""Keys with metadata of a message, which no trainer uses."""


@dataclass(slots=True)
class Turns:
    """Messages in order, whether each is trained on, and the ignored keys."""

    messages: list[Message] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)  # descriptions for the log

    def add(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})
        self.supervised.append(role == "assistant")

    def extend(self, others: Turns, *, context: bool = False) -> None:
        """Append turns; `context` turns are not trained on."""
        self.messages += others.messages
        self.supervised += [one and not context for one in others.supervised]
        self.ignored |= others.ignored


def read_turns(value: Any, place: str) -> Turns:
    """The turns of a list of messages, of its JSON text, or of an object of lists.

    Raises:
        RowError: the value is none of these, or one of the messages cannot be used.
    """
    rows = _rows(unpack(value))
    if not isinstance(rows, list):
        remedy = "; write it as JSON" if isinstance(value, str) and "[" in value[:2] else ""
        raise RowError(f"{place} is {kind(value)}, not a list of messages{remedy}")
    if not rows:
        raise RowError(f"{place} is an empty list")
    turns = Turns()
    called = False  # whether the turn before was only a call
    for number, row in enumerate(rows):
        if type(row) is dict and len(row) == 2:
            name, content = row.get("role"), row.get("content")
            role = _ROLE_OF.get(name) if type(name) is str else None
            if role and type(content) is str and content and not content.isspace():
                turns.add(role, content)
                called = False
                continue
        called = _read(row, f"{place}[{number}]", turns, after_call=called)
    return turns


def is_turns(value: Any) -> bool:
    """Whether a value is a list of messages, possibly as JSON text, and not plain text."""
    if isinstance(value, list):
        return True
    rows = _rows(unpack(value))
    return isinstance(rows, list) and bool(rows) and all(map(looks_like_turn, rows))


def looks_like_turn(value: Any) -> bool:
    """Whether a value is an object with a role and a content."""
    return isinstance(value, dict) and all(
        value.keys() & {*keys} for keys in (_ROLE_KEYS, _CONTENT_KEYS)
    )


def _rows(value: Any) -> Any:
    """Messages from an object with a list for each key, as in some Parquet files."""
    if not isinstance(value, dict) or not value.keys() & {*_ROLE_KEYS}:
        return value
    columns = {key: column for key, column in value.items() if column is not None}
    if not all(isinstance(column, list) for column in columns.values()):
        return value
    if len({len(column) for column in columns.values()}) != 1:
        return value
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _read(row: Any, place: str, turns: Turns, *, after_call: bool) -> bool:
    """Append one turn; returns whether the turn is only a call."""
    turn = _object(row, place)
    role_key, name = _pick(turn, _ROLE_KEYS, place)
    name = unpack(name)
    if isinstance(name, bytes):
        name = name.decode("utf-8", "replace")
    if not isinstance(name, str) or not name:
        raise RowError(f"{place}.{role_key} is {kind(name)}, not the name of a role")
    caller = name.strip().casefold()
    if caller in _CALLERS:
        _, content = _pick(turn, _CONTENT_KEYS, place)
        calls = calls_of(content, f"{place}, of role {caller},")
        if not calls:
            raise RowError(f"{place} is of role {caller} and calls nothing")
        more = _further(turn, "assistant", place, turns.ignored)
        trained = _flag(turn, place) is not False
        if after_call and not more and turns.supervised[-1] == trained:
            turns.messages[-1]["tool_calls"] += calls  # called at once
        else:
            _put(more, "tool_calls", calls, place)
            turns.messages.append({"role": "assistant", "content": "", **more})
            turns.supervised.append(trained)
        return True
    role = _known(name)
    more = _further(turn, role, place, turns.ignored)
    content = _content(turn, place, optional="tool_calls" in more)
    says = content.strip() or more.keys() & {"tool_calls", "reasoning_content"}
    asked = _flag(turn, place)
    if role == "assistant" and not says:
        turns.ignored.add("assistant turns without text, which are not trained on")
    if role != "assistant" and asked and is_blank(turn.get("weight")):
        turns.ignored.add("training on turns other than the assistant's, which messages ask for")
    turns.messages.append({"role": role, "content": content, **more})
    turns.supervised.append(role == "assistant" and bool(says) and asked is not False)
    return False


def _object(row: Any, place: str) -> Mapping[str, Any]:
    row = unpack(row)
    if isinstance(row, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in row
    ):
        row = dict(row)  # a value of a map column
    if not isinstance(row, dict):
        raise RowError(f"{place} is {kind(row)}, not an object")
    return row


def _pick(turn: Mapping[str, Any], keys: tuple[str, ...], place: str) -> tuple[str, Any]:
    """The first of `keys` that the turn has, and its value."""
    held = [key for key in keys if turn.get(key) is not None]
    if not held:
        null = [key for key in keys if key in turn]
        if not null:
            others = " or ".join(map(repr, keys[1:]))
            raise RowError(f"{place} has no {keys[0]!r} (nor {others})")
        return null[0], None
    first = held[0]
    same = _known if keys is _ROLE_KEYS else lambda value: value
    for other in held[1:]:
        if same(turn[first]) != same(turn[other]):
            raise RowError(f"{place} has {first!r} and {other!r}, which differ; remove one")
    return first, turn[first]


def _known(role: Any) -> Any:
    """The chat templates' name of a role; an unknown role unchanged."""
    if not isinstance(role, str):
        return role
    name = role.strip().casefold()
    return _ROLE_OF.get(name, "assistant" if name.startswith(("gpt", "chatgpt")) else role)


def _content(turn: Mapping[str, Any], place: str, *, optional: bool) -> str:
    if optional and all(turn.get(key) is None for key in _CONTENT_KEYS):
        return ""
    key, value = _pick(turn, _CONTENT_KEYS, place)
    return text_of(value, f"{place}.{key}")


def _flag(turn: Mapping[str, Any], place: str) -> bool | None:
    """Whether the turn's keys say to train on it; None if they do not say."""
    found = {}
    for key in _TRAINED:
        found[key] = flag(turn.get(key), f"{place}.{key}")
    for key in _UNTRAINED:
        masked = flag(turn.get(key), f"{place}.{key}")
        found[key] = None if masked is None else not masked
    said = {key: value for key, value in found.items() if value is not None}
    if len(set(said.values())) > 1:
        raise RowError(f"{place} is to be trained on and is not: {' and '.join(said)} disagree")
    return next(iter(said.values()), None)


def _further(turn: Mapping[str, Any], role: str, place: str, ignored: set[str]) -> Message:
    """Keys other than role and content that a chat template may read."""
    found: Message = {}
    for key, value in turn.items():
        if key in _ROLE_KEYS or key in _CONTENT_KEYS or is_blank(value):
            continue
        if key == "channel" and value != "final":
            raise RowError(
                f"{place} is of the channel {value!a:.40}; put it into reasoning_content"
            )
        if key in _REFUSED:
            raise RowError(f"{place}.{key} {_REFUSED[key]}")
        if key in _CALLS and role == "assistant":
            _put(found, "tool_calls", calls_of(value, f"{place}.{key}"), place)
        elif key in _REASONING and role == "assistant":
            text = text_of(value, f"{place}.{key}")
            if text.strip():
                _put(found, "reasoning_content", text, place)
        elif key in _PASSED:
            found[key] = text_of(value, f"{place}.{key}")
        elif key not in (*_TRAINED, *_UNTRAINED, "channel") and key not in _PROVENANCE:
            ignored.add(f"the message key {_shown(key)}")
    return found


def _put(found: Message, key: str, value: Any, place: str) -> None:
    if found.setdefault(key, value) != value:
        raise RowError(f"{place} has {key} under two names, which differ; remove one")


@functools.lru_cache(maxsize=1024)
def _shown(key: Any) -> str:
    return ascii(str(key)[:40])
