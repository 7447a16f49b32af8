"""Conversation: one example as a chat template takes it, and which of its turns are trained on.

`schemas` makes conversations of rows, `examples` keeps them in Parquet, `chat` turns them into
token ids and labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

Message = dict[str, Any]
"""`role` and `content`, both texts, and what else a chat template may read (`tool_calls`,
`reasoning_content`, `name`, …)."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages in order, and how they are to be rendered and trained on."""

    messages: list[Message]
    supervised: list[bool]  # one per message: trained on; False for all but assistant turns
    template: dict[str, Any] = field(default_factory=dict)
    """Further variables of the chat template: `tools`, and a row's own `chat_template_kwargs`."""

    @classmethod
    def of(cls, messages: Sequence[Message]) -> Conversation:
        """Every assistant turn is trained on, and the template is given nothing else."""
        return cls(
            messages=list(messages),
            supervised=[message["role"] == "assistant" for message in messages],
        )

    def only_last(self) -> Conversation:
        """The same with nothing but the last of the supervised messages trained on."""
        last = max((i for i, one in enumerate(self.supervised) if one), default=-1)
        return replace(self, supervised=[i == last for i in range(len(self.supervised))])

    def until(self, count: int) -> Conversation:
        """The conversation's first `count` messages."""
        return replace(self, messages=self.messages[:count], supervised=self.supervised[:count])

    def columns(self) -> dict[str, Any]:
        """Values of the Parquet columns in `FIELDS`."""
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
        """The conversation that `columns` gave the values of; `row` may hold other columns."""
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
        ("rest", pa.string()),  # the message's further keys as JSON; null where there are none
    ]
)
FIELDS: list[tuple[str, pa.DataType]] = [("messages", pa.list_(_TURN)), ("template", pa.string())]
"""Parquet columns of a conversation."""

COLUMNS = [name for name, _ in FIELDS]
