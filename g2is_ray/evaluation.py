"""Test loss and exact match of a model on a target's test rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from g2is_ray.batches import Batch, batches_by_length
from g2is_ray.chat import ChatEncoder
from g2is_ray.config import EvaluateSettings
from g2is_ray.loss import SupervisedLoss

_STATED = re.compile(r"answer is:?\s*(.+?)\.?\s*$", re.IGNORECASE | re.MULTILINE)


def final_answer(text: str) -> str:
    """The part of a reply that is compared, case and blanks normalized.

    The number after `####` (GSM8K's form); else what follows the last "answer is" up to
    the line's final full stop; else the whole text.
    """
    if "####" in text:
        text = (text.rsplit("####", 1)[1].split() or [""])[0].replace(",", "")
    elif stated := _STATED.findall(text):
        text = stated[-1]
    return " ".join(text.casefold().split()).rstrip(".;")


class Evaluation:
    """Measures one model after another on the same rows.

    Args:
        rows: test rows with `messages` and, where exact match is wanted, `answer`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[dict[str, Any]],
        *,
        max_tokens: int,
        settings: EvaluateSettings,
        token_budget: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._token_budget = token_budget
        encoder = ChatEncoder(tokenizer, max_tokens=max_tokens)
        self._encoded = [encoder.encode(row["messages"]) for row in rows]
        answered = [row for row in rows if row["answer"] is not None]
        self._asked = [
            (encoder.encode_prompt(row["messages"]), final_answer(row["answer"]))
            for row in answered[: settings.exact_match_rows]
        ]

    @torch.no_grad()
    def measure(self, model: Any) -> dict[str, Any]:
        """Scores of a causal LM, with or without adapter.

        Returns:
            `loss`, mean negative log-likelihood per supervised token; `test_tokens`;
            `exact_match` in [0, 1], None without answers; `exact_match_rows`.
        """
        model.eval()
        loss, tokens = self._loss(model)
        right = self._right(model) if self._asked else None
        return {
            "loss": loss,
            "test_tokens": tokens,
            "exact_match": None if right is None else right / len(self._asked),
            "exact_match_rows": len(self._asked),
        }

    def _loss(self, model: Any) -> tuple[float, int]:
        pad_id = self._tokenizer.pad_token_id or 0
        supervised = SupervisedLoss(model)
        total, count = 0.0, 0
        lengths = [len(one.input_ids) for one in self._encoded]
        for indices in batches_by_length(lengths, self._token_budget):
            batch = Batch.of([self._encoded[i] for i in indices], pad_id, model.device)
            total += float(supervised.sums(batch).double().sum())
            count += len(batch.targets_n)
        return total / count, count

    def _right(self, model: Any) -> int:
        prompts = [prompt for prompt, _ in self._asked]
        right = 0
        room = self._settings.max_new_tokens
        for batch in batches_by_length([len(p) + room for p in prompts], self._token_budget):
            replies = self._generate(model, [prompts[i] for i in batch])
            right += sum(
                final_answer(reply) == self._asked[i][1]
                for i, reply in zip(batch, replies, strict=True)
            )
        return right

    def _generate(self, model: Any, prompts: Sequence[list[int]]) -> list[str]:
        """Greedy replies; prompts are padded on the left."""
        longest = max(map(len, prompts))
        pad_id = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad_id] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        ends = model.generation_config.eos_token_id or self._tokenizer.eos_token_id
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=self._settings.max_new_tokens,
                eos_token_id=ends,
                pad_token_id=pad_id,
            ),
        )
        return self._tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)
