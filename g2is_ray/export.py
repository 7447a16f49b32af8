"""Selections as files that other trainers read: LLaMA-Factory, TRL, axolotl, Hugging Face datasets.

A row is its whole conversation in OpenAI's style, with its id and source beside it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import pydantic
import yaml
from pydantic.dataclasses import dataclass

from g2is_ray import scratch
from g2is_ray.config import Text
from g2is_ray.conversation import Message
from g2is_ray.errors import InputError
from g2is_ray.examples import ExampleSet
from g2is_ray.storage import Storage

log = logging.getLogger(__name__)

Format = Literal["llama-factory", "trl", "axolotl", "hf-dataset"]

_DATASET_INFO = "dataset_info.json"  # LLaMA-Factory's index of a folder's data sets
_REMEDY = "give --overwrite to replace it, or another --output"


@dataclass(
    frozen=True,
    kw_only=True,
    config=pydantic.ConfigDict(use_attribute_docstrings=True, extra="forbid"),
)
class ExportSettings:
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


class Conversation(TypedDict):
    id: str
    source: str
    messages: list[Message]


def conversations(pool: ExampleSet, rows: Iterable[int]) -> list[Conversation]:
    """Rows of the pool, in the order given."""
    held = pool.take(rows, ["id", "group", "messages"])
    return [{"id": row["id"], "source": row["group"], "messages": row["messages"]} for row in held]


def write_selections(
    selections: Mapping[str, Sequence[Conversation]],
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
    for path in files:
        if not overwrite and output.exists(path):
            raise InputError(f"{output.location(path)} exists: {_REMEDY}")
    if format == "llama-factory":
        files[_DATASET_INFO] = _dataset_info(output, selections, overwrite=overwrite)
    for path, data in files.items():
        output.write_bytes(path, data)


def _json_lines(rows: Sequence[Conversation]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _hf_dataset(name: str, rows: Sequence[Conversation]) -> dict[str, bytes]:
    from datasets import Dataset, Features, Value, disable_progress_bars  # slow to import

    disable_progress_bars()
    text = Value("string")
    features = Features({"id": text, "source": text, "messages": [{"role": text, "content": text}]})
    with scratch.folder() as folder:
        # One shard, so that no file of a larger selection is left where this one replaces it.
        Dataset.from_list(list(rows), features=features).save_to_disk(folder, num_shards=1)
        return {f"{name}/{file.name}": file.read_bytes() for file in sorted(folder.iterdir())}


def _axolotl_entry(data: str) -> bytes:
    """The `datasets` of an axolotl configuration; what is trained on is as in tuning here."""
    entry = {
        "path": data,
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        "roles_to_train": ["assistant"],
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


def _warn_of_skipped(name: str, rows: Sequence[Conversation]) -> None:
    skipped = sum(not _alternates(row["messages"]) for row in rows)
    if skipped:
        log.warning(
            "export: LLaMA-Factory will skip %d of the %d conversations of %s, because user and "
            "assistant do not take turns in them",
            skipped,
            len(rows),
            name,
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
