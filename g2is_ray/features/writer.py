"""Computing the features of a workspace's examples, part by part."""

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
from g2is_ray.config import ExecutionSettings
from g2is_ray.data.examples import ExampleSet
from g2is_ray.errors import InputError
from g2is_ray.features.store import feature_files
from g2is_ray.models import loading
from g2is_ray.workspace.workspace import Workspace, part_name

MAX_INVALID = 0.01  # share of examples without a usable feature that is put up with

FeatureRows = tuple[NDArray[np.float32], Mapping[int, str]]
"""Features [n, d], zero where invalid, and why some are, by position."""


@dataclass(frozen=True, kw_only=True)
class FeaturePart:
    """One part of an example set, and the stage that its features belong to."""

    examples: str
    stage: str
    part: int

    def __str__(self) -> str:
        return f"{self.stage}/{part_name(self.part)}"


class FeatureWriter(ABC):
    """Computes and writes features of one kind, with a model in memory."""

    def __init__(self, workspace: Workspace, encoder: ChatEncoder) -> None:
        self._workspace, self._encoder = workspace, encoder
        self._computing = threading.Lock()

    @abstractmethod
    def _compute(self, part: FeaturePart, examples: Sequence[Encoded]) -> FeatureRows:
        """Features of the examples of a part; called by one thread at a time."""

    def write(self, one: FeaturePart) -> dict[str, Any]:
        """Write the features of one part; returns its receipt.

        May be called by several threads: one computes, the others read and write meanwhile.

        Raises:
            SettingError: the part, or an example, is more than memory holds.
            InputError: more examples have no usable feature than is put up with in the whole
                set; the part is written all the same.
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
    """Refuse to go on if more than 1 % of the `rows` of a stage are known to be invalid.

    Raises:
        InputError: they are; says how many, and names the first.
    """
    if len(invalid) > MAX_INVALID * rows:
        raise InputError(
            f"{stage}: {len(invalid)} of {rows} examples cannot be used, more than "
            f"{MAX_INVALID:.0%}; the first is {invalid[0]['id']}: {invalid[0]['reason']}"
        )


def token_budget(execution: ExecutionSettings) -> int | Literal["auto"]:
    """Padded tokens of a batch, or `auto` where they are to be found out."""
    return "auto" if execution.token_budget == "auto" else loading.token_budget(execution)
