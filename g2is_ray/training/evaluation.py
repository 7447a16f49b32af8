"""Test loss and exact match of a model on a target's test rows."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from g2is_ray.chat.conversation import COLUMNS, Conversation
from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.config import EvaluateSettings, ExecutionSettings, ModelSettings
from g2is_ray.data.examples import ExampleSet
from g2is_ray.models import loading
from g2is_ray.models.batches import Batch, batches_by_length
from g2is_ray.models.loss import SupervisedLoss
from g2is_ray.training.generation import GreedyWriter
from g2is_ray.workspace.workspace import Workspace

_STATED = re.compile(r"answer is:?\s*(.+?)\.?\s*$", re.IGNORECASE | re.MULTILINE)


def final_answer(text: str) -> str:
    """Return the part of a reply that is compared, with case and blanks normalized.

    It is the number after `####`, the form of GSM8K; or the text after the last "answer is", up to
    the final full stop of the line; or else the whole text.
    """
    if "####" in text:
        text = (text.rsplit("####", 1)[1].split() or [""])[0].replace(",", "")
    elif stated := _STATED.findall(text):
        text = stated[-1]
    return " ".join(text.casefold().split()).rstrip(".;")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of a model on each test row."""

    losses: NDArray[np.float64]  # [n], summed negative log-likelihoods of its supervised tokens
    tokens: NDArray[np.int64]  # [n], supervised tokens
    right: NDArray[np.float64]  # [n], 1 for a matching answer, 0 for another, NaN if not asked
    cut_rows: int = 0  # longer than max_tokens: only their beginning has a loss
    cut_replies: int = 0  # with max_new_tokens tokens and no end: an answer may be missing

    def facts(self) -> dict[str, Any]:
        """`loss`, mean negative log-likelihood per supervised token; `test_tokens`;
        `exact_match` in [0, 1], None without answers; `exact_match_rows`; `cut_rows`;
        `cut_replies`."""
        asked = self.right[~np.isnan(self.right)]
        return {
            "loss": float(self.losses.sum() / self.tokens.sum()),
            "test_tokens": int(self.tokens.sum()),
            "exact_match": float(asked.mean()) if len(asked) else None,
            "exact_match_rows": len(asked),
            "cut_rows": self.cut_rows,
            "cut_replies": self.cut_replies,
        }


class Evaluation:
    """Measures one model after another on the same rows.

    Args:
        rows: test rows with a conversation's columns and, where exact match is wanted, `answer`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[dict[str, Any]],
        *,
        max_tokens: int,
        settings: EvaluateSettings,
        token_budget: int,
        template_date: str = "",
    ) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._token_budget = token_budget
        self._encoder = encoder = ChatEncoder(
            tokenizer, max_tokens=max_tokens, template_date=template_date
        )
        conversations = list(map(Conversation.from_columns, rows))
        self._encoded = list(map(encoder.encode, conversations))
        answered = [i for i, row in enumerate(rows) if row["answer"] is not None]
        self._asked = answered[: settings.exact_match_rows]
        self._prompts = [encoder.encode_prompt(conversations[i]) for i in self._asked]
        self._answers = [final_answer(rows[i]["answer"]) for i in self._asked]

    @classmethod
    def of_target(
        cls,
        workspace: Workspace,
        target: str,
        model: ModelSettings,
        settings: EvaluateSettings,
        execution: ExecutionSettings,
        max_tokens: int,
    ) -> Evaluation:
        """Return the evaluation on the test rows of a workspace's target."""
        rows = ExampleSet(workspace, f"targets/{target}/test")
        return cls(
            loading.load_tokenizer(model),
            list(rows.read_all([*COLUMNS, "answer"])),
            max_tokens=max_tokens,
            settings=settings,
            token_budget=loading.token_budget(execution),
            template_date=model.template_date,
        )

    @torch.no_grad()
    def measure(self, model: Any) -> Scores:
        """Return the scores of a causal LM, with or without adapter."""
        model.eval()
        losses, tokens = self._losses(model)
        right = np.full(len(losses), np.nan)
        right[self._asked], cut = self._matches(model)
        return Scores(
            losses=losses,
            tokens=tokens,
            right=right,
            cut_rows=sum(one.truncated for one in self._encoded),
            cut_replies=cut,
        )

    def _losses(self, model: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        pad_id = self._tokenizer.pad_token_id or 0
        supervised = SupervisedLoss(model)
        losses = np.zeros(len(self._encoded))
        lengths = [len(one.input_ids) for one in self._encoded]
        for indices in batches_by_length(lengths, self._token_budget, supervised.regimes):
            batch = Batch.of([self._encoded[i] for i in indices], pad_id, model.device)
            losses[indices] = supervised.sums(batch).double().cpu().numpy()
        return losses, np.array([one.supervised_tokens for one in self._encoded])

    def _matches(self, model: Any) -> tuple[NDArray[np.bool_], int]:
        """Return which asked rows have a matching answer, and the number of cut replies."""
        right = np.zeros(len(self._prompts), dtype=bool)
        cut = 0
        if not self._prompts:
            return right, cut
        writer = GreedyWriter(
            model,
            self._encoder,
            max_new_tokens=self._settings.max_new_tokens,
            token_budget=self._token_budget,
        )
        for i, reply in enumerate(writer.replies(self._prompts)):
            right[i] = final_answer(reply.text) == self._answers[i]
            cut += reply.cut
        return right, cut


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model to measure: the base model, or an adapter on the base model."""

    name: str
    adapter: str = ""  # folder in the workspace
    fingerprint: str = ""  # of the stage that made the adapter

    def is_done(self, receipt: dict[str, Any]) -> bool:
        """Whether a receipt belongs to this adapter, not to an earlier one of the same name."""
        return receipt["fingerprint"] == self.fingerprint

    def __str__(self) -> str:
        return self.name


class Evaluator:
    """Measures models of a workspace on a target's test rows, and writes receipts."""

    def __init__(
        self,
        workspace: Workspace,
        target: str,
        model: ModelSettings,
        settings: EvaluateSettings,
        execution: ExecutionSettings,
        max_tokens: int,
    ) -> None:
        self._workspace, self._target = workspace, target
        self._model, self._execution = model, execution
        self._evaluation = Evaluation.of_target(
            workspace, target, model, settings, execution, max_tokens
        )

    def measure(self, item: Measured) -> dict[str, Any]:
        """Measure one model; returns its receipt, which holds the scores."""
        began = time.monotonic()
        model: Any = loading.load_base(
            self._model, loading.default_device(), self._execution.attention
        )
        if item.adapter:
            with self._workspace.storage.local_folder(item.adapter) as folder:
                model = loading.load_adapter(model, folder)
        facts = self._evaluation.measure(model).facts()
        facts["fingerprint"] = item.fingerprint
        facts["seconds"] = round(time.monotonic() - began, 3)
        return self._workspace.stage(f"evaluations/{self._target}").commit(item.name, {}, facts)
