"""Conversation: the messages of one example, and which assistant turns are trained on.

`data.schemas` converts rows to conversations, `data.examples` stores them as Parquet, and
`chat.encoder` turns them into token ids and labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

Message = dict[str, Any]
"""`role` and `content`, both strings, and other keys that a chat template may read (`tool_calls`,
`reasoning_content`, `name`, …)."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages in order, which of them are supervised, and variables of the chat template."""

    messages: list[Message]
    supervised: list[bool]  # whether each message is trained on; True for assistant turns only
    template: dict[str, Any] = field(default_factory=dict)
    """Variables passed to the chat template: `tools`, and the row's `chat_template_kwargs`."""

    @classmethod
    def of(cls, messages: Sequence[Message]) -> Conversation:
        """A conversation that trains on every assistant turn, without template variables."""
        return cls(
            messages=list(messages),
            supervised=[message["role"] == "assistant" for message in messages],
        )

    def only_last(self) -> Conversation:
        """A copy that trains on the last supervised message only."""
        last = max((i for i, one in enumerate(self.supervised) if one), default=-1)
        return replace(self, supervised=[i == last for i in range(len(self.supervised))])

    def until(self, count: int) -> Conversation:
        """A copy with the first `count` messages only."""
        return replace(self, messages=self.messages[:count], supervised=self.supervised[:count])

    def columns(self) -> dict[str, Any]:
        """The values of the Parquet columns in `FIELDS`."""
        turns = []
        for message, supervised in zip(self.messages, self.supervised, strict=True):
            rest = {k: v for k, v in message.items() if k not in ("role", "content")}
            turns.append(
                {
                    "role": message["role"],
                    "content": message["content"],
                    "supervised": supervised,
                    "rest": json.dumps(rest) if rest else None,
                }
            )
        return {
            "messages": turns,
            "template": json.dumps(self.template) if self.template else None,
        }

    @classmethod
    def from_columns(cls, row: Mapping[str, Any]) -> Conversation:
        """The conversation that `columns` converted to `row`; other columns are skipped."""
        messages = []
        for turn in row["messages"]:
            rest = json.loads(turn["rest"]) if turn["rest"] else {}
            messages.append({"role": turn["role"], "content": turn["content"], **rest})
        return cls(
            messages=messages,
            supervised=[turn["supervised"] for turn in row["messages"]],
            template=json.loads(row["template"]) if row["template"] else {},
        )


_TURN = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("supervised", pa.bool_()),
        ("rest", pa.string()),  # JSON of the message's other keys; null if it has none
    ]
)
FIELDS: list[tuple[str, pa.DataType]] = [("messages", pa.list_(_TURN)), ("template", pa.string())]
"""Parquet columns of a conversation."""

COLUMNS = [name for name, _ in FIELDS]
