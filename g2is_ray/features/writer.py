"""Computes and writes the features of a workspace's examples, part by part."""

from __future__ import annotations

import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from g2is_ray.chat.conversation import COLUMNS, Conversation
from g2is_ray.chat.encoder import ChatEncoder, Encoded
from g2is_ray.config import ExecutionSettings, ModelSettings
from g2is_ray.data.examples import ExampleSet
from g2is_ray.errors import InputError
from g2is_ray.features.store import feature_files
from g2is_ray.models import loading
from g2is_ray.workspace.workspace import Workspace, part_name

MAX_INVALID = 0.01  # largest share of a stage's examples that may lack a usable feature

FeatureRows = tuple[NDArray[np.float32], Mapping[int, str]]
"""Features [n, d], zero where invalid, and the reason for each invalid row, by position."""


@dataclass(frozen=True, kw_only=True)
class FeaturePart:
    """One part of an example set, and the stage that its features belong to.

    Attributes:
        examples: name of the example set, such as `pool`.
        stage: name of the stage, such as `gradients`.
        part: number of the part, from 0.
    """

    examples: str
    stage: str
    part: int

    def __str__(self) -> str:
        return f"{self.stage}/{part_name(self.part)}"


class FeatureWriter(ABC):
    """Computes and writes features of one kind; holds a model in memory.

    Args:
        workspace: read from and written to.
        model: names the tokenizer and the date of its chat template.
        max_tokens: longest example in tokens.
    """

    def __init__(self, workspace: Workspace, model: ModelSettings, max_tokens: int) -> None:
        self._workspace = workspace
        tokenizer = loading.load_tokenizer(model)
        self._pad_id: int = tokenizer.pad_token_id or 0
        self._encoder = ChatEncoder(
            tokenizer, max_tokens=max_tokens, template_date=model.template_date
        )
        self._computing = threading.Lock()

    @abstractmethod
    def _compute(self, part: FeaturePart, examples: Sequence[Encoded]) -> FeatureRows:
        """Return the features of the examples of a part; called by one thread at a time."""

    def write(self, one: FeaturePart) -> dict[str, Any]:
        """Write the features of one part and return its receipt.

        May be called by several threads: one computes while the others read and write.

        Raises:
            SettingError: the part or a single example does not fit into memory.
            InputError: more examples of this part lack a usable feature than `MAX_INVALID` allows
                in the whole set; the part is written nevertheless.
        """
        examples = ExampleSet(self._workspace, one.examples)
        rows = examples.read(one.part, ["id", *COLUMNS])
        encoded = [self._encoder.encode(Conversation.from_columns(row)) for row in rows]
        with self._computing:
            began = time.monotonic()
            features, reasons = self._compute(one, encoded)
            seconds = time.monotonic() - began
        invalid = [{"id": rows[i]["id"], "reason": why} for i, why in sorted(reasons.items())]
        facts = {
            "rows": len(rows),
            "tokens": sum(len(example.input_ids) for example in encoded),
            "invalid": invalid,
            "seconds": round(seconds, 3),
            "host": socket.gethostname(),
            "device": loading.default_device().type,
        }
        files = feature_files(one.part, features)
        receipt = self._workspace.stage(one.stage).commit_once(part_name(one.part), files, facts)
        refuse_invalid(one.stage, invalid, examples.rows)
        return receipt


def refuse_invalid(stage: str, invalid: Sequence[Mapping[str, str]], rows: int) -> None:
    """Refuse to go on if more than 1% of the rows of a stage are invalid.

    Args:
        stage: name of the stage.
        invalid: `id` and `reason` of each row known to be invalid.
        rows: number of rows of the stage.

    Raises:
        InputError: says how many rows are invalid, and names the first.
    """
    if len(invalid) > MAX_INVALID * rows:
        raise InputError(
            f"{stage}: {len(invalid)} of {rows} examples cannot be used, more than "
            f"{MAX_INVALID:.0%}; the first is {invalid[0]['id']}: {invalid[0]['reason']}"
        )


def token_budget(execution: ExecutionSettings) -> int | Literal["auto"]:
    """Return the padded tokens of a batch, or `auto` to search for the largest that fits."""
    return "auto" if execution.batch_tokens == "auto" else loading.token_budget(execution)
