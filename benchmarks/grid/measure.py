"""What a tuned model makes of rows: losses token by token, and how likely each answer is.

Kept apart from the library's own evaluation, so that what is stored keeps its meaning when that
changes, and as fine as it is, so that other metrics can be computed from it later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from g2is_ray.chat.encoder import IGNORED, ChatEncoder, Encoded
from g2is_ray.models.batches import batches_by_length, pad
from grid.data import Row, closed_set, with_answer

_BATCH_TOKENS = 1024  # padded


@dataclass(frozen=True, kw_only=True)
class Measures:
    """A target's test rows, encoded, and what is asked of them."""

    encoded: Sequence[Encoded]
    options: Sequence[Sequence[Encoded]]  # of each row, one for each possible answer; or none
    right: NDArray[np.int16]  # [n], which of the options is right; -1 without options
    answer: NDArray[np.bool_]  # [all supervised tokens], of the answer itself
    tasks: Sequence[str]  # [n]

    @classmethod
    def of(cls, rows: Sequence[Row], encoder: ChatEncoder) -> Measures:
        options: list[list[Encoded]] = []
        right = []
        for row in rows:
            same_task = [other for other in rows if other["source"] == row["source"]]
            texts = closed_set(row, same_task)
            replies = [encoder.encode(with_answer(row, text)) for text in texts]
            if any(one.truncated for one in replies):
                texts, replies = [], []
            options.append(replies)
            right.append(texts.index(row["answer"]) if texts else -1)
        return cls(
            encoded=[encoder.encode(row["messages"]) for row in rows],
            options=options,
            right=np.array(right, dtype=np.int16),
            answer=np.concatenate([_answer_tokens(row, encoder) for row in rows]),
            tasks=[row["source"] for row in rows],
        )

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Supervised tokens [n] of each row."""
        return np.array([one.supervised_tokens for one in self.encoded], dtype=np.int32)

    @property
    def option_counts(self) -> NDArray[np.int16]:
        """Possible answers [n] of each row."""
        return np.array([len(each) for each in self.options], dtype=np.int16)


def _answer_tokens(row: Row, encoder: ChatEncoder) -> NDArray[np.bool_]:
    """Which of the row's supervised tokens share a character with its answer's last mention."""
    encoded = encoder.encode(row["messages"])
    marks = np.array([label != IGNORED for label in encoded.labels])
    text = encoder.tokenizer.apply_chat_template(row["messages"], tokenize=False)
    answer = row.get("answer", "")
    start = text.rfind(answer) if answer else -1
    if start < 0:
        return np.zeros(marks.sum(), dtype=bool)
    tokens = encoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = np.array(tokens["offset_mapping"][: len(marks)])
    within = (offsets[:, 0] < start + len(answer)) & (offsets[:, 1] > start)
    return within[marks]


@torch.no_grad()
def token_losses(model: Any, examples: Sequence[Encoded], pad_id: int) -> list[NDArray[np.float32]]:
    """Negative log-likelihoods of each example's supervised tokens."""
    found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(examples)
    lengths = [len(one.input_ids) for one in examples]
    for batch in batches_by_length(lengths, _BATCH_TOKENS):
        ids, labels = pad([examples[i] for i in batch], pad_id)
        logits = model(input_ids=ids.to(model.device)).logits[:, :-1].float()
        wanted = labels[:, 1:].to(model.device)
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none"
        ).view(wanted.shape)
        for i, own, mark in zip(batch, losses, wanted != IGNORED, strict=True):
            found[i] = own[mark].cpu().numpy()
    return found


@torch.no_grad()
def option_losses(model: Any, options: Sequence[Encoded], pad_id: int) -> NDArray[np.float32]:
    """Negative log-likelihood of each option from where they begin to differ, end of turn included.

    What they share is run once.
    """
    ids = [one.input_ids for one in options]
    shared = 0
    while shared < min(map(len, ids)) - 1 and len({own[shared] for own in ids}) == 1:
        shared += 1
    device = model.device
    before = model(input_ids=torch.tensor([ids[0][:shared]], device=device), use_cache=True)
    cache = before.past_key_values
    cache.batch_repeat_interleave(len(options))
    rests = [Encoded(o.input_ids[shared:], o.labels[shared:], 0) for o in options]
    rest, labels = (one.to(device) for one in pad(rests, pad_id))
    logits = before.logits[:, -1:].expand(len(options), -1, -1)
    if rest.shape[1] > 1:
        more = model(input_ids=rest[:, :-1], past_key_values=cache, use_cache=True).logits
        logits = torch.cat([logits, more], dim=1)
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(labels.shape).sum(dim=1).cpu().numpy()


def measure(
    model: Any, measures: Measures, general: Sequence[Encoded], pad_id: int
) -> dict[str, NDArray[Any]]:
    """What is stored of a model: see `results`."""
    model.eval()
    own = token_losses(model, measures.encoded, pad_id)
    asked = [option_losses(model, each, pad_id) for each in measures.options if each]
    return {
        "token_losses": np.concatenate(own).astype(np.float16),
        "losses": np.array([one.sum(dtype=np.float64) for one in own], dtype=np.float32),
        "options": np.concatenate(asked) if asked else np.empty(0, np.float32),
        "general": np.array(
            [one.sum(dtype=np.float64) for one in token_losses(model, general, pad_id)],
            dtype=np.float32,
        ),
    }
