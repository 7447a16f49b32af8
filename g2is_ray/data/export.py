"""Selections as files that other trainers read: LLaMA-Factory, TRL, axolotl, Hugging Face datasets.

A row is its whole conversation in OpenAI's style, with its id and source beside it. An assistant
turn that is not trained on has `train: false`; tools are in a column `tools`, as JSON text, and
other variables of the chat template in `chat_template_kwargs`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import yaml
from pydantic.dataclasses import dataclass

from g2is_ray.chat.conversation import COLUMNS, Conversation, Message
from g2is_ray.config import STRICT, Text
from g2is_ray.data.examples import ExampleSet
from g2is_ray.errors import InputError
from g2is_ray.workspace import scratch
from g2is_ray.workspace.storage import Storage

log = logging.getLogger(__name__)

Format = Literal["llama-factory", "trl", "axolotl", "hf-dataset"]

_DATASET_INFO = "dataset_info.json"  # LLaMA-Factory's index of a folder's data sets
_REMEDY = "give --overwrite to replace it, or another --output"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportSettings:
    """Exporting"""

    workspace: Text
    """Directory or URL of the workspace that holds the selection."""
    format: Format
    """Who is to read it: JSONL with the entry that LLaMA-Factory or axolotl needs beside it, JSONL
    alone for TRL, or a folder for Hugging Face's datasets.load_from_disk."""
    output: Text
    """Folder or URL to write to; files are named after the selection."""
    target: Text | None = None
    """The selection: a target, joint, or what one is compared with, such as gsm8k@random; left
    out, every selection but those for comparison."""
    overwrite: bool = False
    """Replace files and entries of the same name."""


Row = dict[str, Any]
"""`id`, `source`, `messages`; `tools` and `chat_template_kwargs` where there are any."""


def conversations(pool: ExampleSet, rows: Iterable[int]) -> list[Row]:
    """Rows of the pool, in the order given."""
    held = pool.take(rows, ["id", "group", *COLUMNS])
    return [
        {"id": row["id"], "source": row["group"], **columns_of(Conversation.from_columns(row))}
        for row in held
    ]


def columns_of(conversation: Conversation) -> Row:
    turns = zip(conversation.messages, conversation.supervised, strict=True)
    columns: Row = {
        "messages": [
            {**message, "train": False}
            if message["role"] == "assistant" and not supervised
            else message
            for message, supervised in turns
        ]
    }
    variables = dict(conversation.template)
    if "tools" in variables:  # LLaMA-Factory takes a text, TRL and axolotl either
        columns["tools"] = json.dumps(variables.pop("tools"), ensure_ascii=False)
    if variables:
        columns["chat_template_kwargs"] = variables
    return columns


def write_selections(
    selections: Mapping[str, Sequence[Row]],
    format: Format,
    output: Storage,
    *,
    overwrite: bool = False,
) -> None:
    """Write selections, by name, to `output`.

    Raises:
        InputError: a file or an entry is there already and `overwrite` is off, in which case
            nothing is written; or LLaMA-Factory's index is not one.
        WorkspaceError: the place cannot be written.
    """
    files: dict[str, bytes] = {}
    for name, rows in selections.items():
        if format == "hf-dataset":
            files |= _hf_dataset(name, rows)
        else:
            files[f"{name}.jsonl"] = _json_lines(rows)
        if format == "axolotl":
            files[f"{name}.yaml"] = _axolotl_entry(output.location(f"{name}.jsonl"))
        if format == "llama-factory":
            _warn_of_skipped(name, rows)
        _warn_of_unread(name, rows, format)
    for path in files:
        if not overwrite and output.exists(path):
            raise InputError(f"{output.location(path)} exists: {_REMEDY}")
    if format == "llama-factory":
        files[_DATASET_INFO] = _dataset_info(output, selections, overwrite=overwrite)
    for path, data in files.items():
        output.write_bytes(path, data)


def _json_lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _hf_dataset(name: str, rows: Sequence[Row]) -> dict[str, bytes]:
    from datasets import Dataset, Features, Value, disable_progress_bars  # slow to import

    disable_progress_bars()
    text = Value("string")
    plain = {"id": text, "source": text, "messages": [{"role": text, "content": text}]}
    names = {name: None for row in rows for name in row}  # from_list takes the first row's alone
    features = None if _further(rows) or names.keys() - plain else Features(plain)
    try:
        held = Dataset.from_list([names | row for row in rows], features=features)
    except pa.ArrowException as error:
        raise InputError(
            f"{name}: calls of tools or template variables are of too many types for one table "
            f"({' '.join(str(error).split())[:200]}); export with --format trl"
        ) from None
    with scratch.folder() as folder:
        # One shard, so that no file of a larger selection is left where this one replaces it.
        held.save_to_disk(folder, num_shards=1)
        return {f"{name}/{file.name}": file.read_bytes() for file in sorted(folder.iterdir())}


def _axolotl_entry(data: str) -> bytes:
    """The `datasets` of an axolotl configuration; what is trained on is as in tuning here."""
    entry = {
        "path": data,
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        "roles_to_train": ["assistant"],
        "message_field_training": "train",
        "train_on_eos": "turn",
    }
    return yaml.safe_dump({"datasets": [entry]}, sort_keys=False, allow_unicode=True).encode()


def _dataset_info(output: Storage, names: Iterable[str], *, overwrite: bool) -> bytes:
    """LLaMA-Factory's index with an entry for each of `names`, and those that it has already."""
    held: Any = {}
    where = output.location(_DATASET_INFO)
    if output.exists(_DATASET_INFO):
        try:
            held = json.loads(output.read_bytes(_DATASET_INFO))
        except (ValueError, RecursionError):
            held = None
        if not isinstance(held, dict):
            raise InputError(f"{where} is not a JSON object: mend it, or give another --output")
    for name in names:
        if name in held and not overwrite:
            raise InputError(f"{where} has an entry {name}: {_REMEDY}")
        held[name] = {
            "file_name": f"{name}.jsonl",
            "formatting": "sharegpt",  # which OpenAI's style is a case of, with these tags
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "observation_tag": "tool",
                "system_tag": "system",
            },
        }
    return (json.dumps(held, indent=2, ensure_ascii=False) + "\n").encode()


def _warn_of_skipped(name: str, rows: Sequence[Row]) -> None:
    skipped = sum(not _alternates(row["messages"]) for row in rows)
    if skipped:
        log.warning(
            "export: LLaMA-Factory will skip %d of the %d conversations of %s, because user and "
            "assistant do not take turns in them",
            skipped,
            len(rows),
            name,
        )


def _further(rows: Iterable[Row]) -> set[str]:
    """Keys that messages have beside role and content."""
    return {key for row in rows for message in row["messages"] for key in message} - {
        "role",
        "content",
    }


def _warn_of_unread(name: str, rows: Sequence[Row], format: Format) -> None:
    """Say which keys of messages the trainers that an export is for do not read."""
    unread = {"llama-factory": {"train", "tool_calls", "reasoning_content"}, "axolotl": set()}
    for key in sorted(_further(rows) & unread.get(format, {"train"})):
        count = sum(any(key in message for message in row["messages"]) for row in rows)
        log.warning(
            "export: %d of the %d conversations of %s have messages with %s, which readers of %s "
            "do not honor; leave them out, or write them otherwise",
            *(count, len(rows), name, key, format),
        )


def _alternates(messages: Sequence[Message]) -> bool:
    """Whether the turns are question and answer in pairs, after a system message if any."""
    roles = [message["role"] for message in messages]
    if roles[0] == "system":
        del roles[0]
    asked, answered = roles[::2], roles[1::2]
    return (
        len(asked) == len(answered)
        and set(asked) <= {"user", "tool"}
        and set(answered) == {"assistant"}
    )
