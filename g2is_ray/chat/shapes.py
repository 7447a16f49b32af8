"""Shapes: the forms in which chat templates take a conversation's messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from g2is_ray.chat.conversation import Message

Shape = Callable[[list[Message]], list[Message] | None]
"""Converts messages to a form; returns None if they already have the form or cannot take it."""


def content_parts(messages: Sequence[Message]) -> list[Message]:
    """Messages with content as a list of parts, which some vision models' templates require."""
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def content_text(message: Message) -> str:
    """A message's content as a string, from either form."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def with_content(message: Message, text: str) -> Message:
    """The message with `text` as its content, in the form of the message's content."""
    if isinstance(message["content"], str):
        return {**message, "content": text}
    return {**message, "content": [{"type": "text", "text": text}]}


def _argument_texts(messages: list[Message]) -> list[Message] | None:
    """Tool calls with arguments as JSON text, as in OpenAI's API and older templates."""
    return _with_arguments(messages, lambda one: one if isinstance(one, str) else _json(one))


def _argument_objects(messages: list[Message]) -> list[Message] | None:
    """Tool calls with arguments as objects, as transformers documents them."""
    return _with_arguments(messages, lambda one: json.loads(one) if isinstance(one, str) else one)


def _with_arguments(messages: list[Message], convert: Callable[[Any], Any]) -> list[Message] | None:
    """The messages with converted arguments; None if nothing changes or conversion fails."""
    changed = []
    try:
        for message in messages:
            calls = []
            for call in message.get("tool_calls") or []:
                function = call.get("function", call)
                function = {**function, "arguments": convert(function["arguments"])}
                calls.append({**call, "function": function} if "function" in call else function)
            changed.append({**message, "tool_calls": calls} if calls else message)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return None if changed == messages else changed


def _thinking(messages: list[Message]) -> list[Message] | None:
    """Messages with reasoning under `thinking`, the key that gpt-oss's template reads."""
    changed = [
        {"thinking" if key == "reasoning_content" else key: value for key, value in one.items()}
        for one in messages
    ]
    return None if changed == messages else changed


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


SHAPES: list[Shape] = [
    lambda messages: messages,
    _argument_texts,
    _argument_objects,
    _thinking,
]
"""In order of preference; the first shape whose messages the template writes in full is used."""
