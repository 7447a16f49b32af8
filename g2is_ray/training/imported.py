"""Checks that an imported adapter lowers the loss here as it did in its training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch

from g2is_ray.chat.conversation import COLUMNS, Conversation
from g2is_ray.chat.encoder import ChatEncoder, Encoded
from g2is_ray.config import ExecutionSettings, ModelSettings
from g2is_ray.data.examples import ExampleSet
from g2is_ray.models import checkpoints, loading
from g2is_ray.models.batches import Batch, batches_by_length
from g2is_ray.models.loss import SupervisedLoss
from g2is_ray.workspace.layout import POOL, WARMUP
from g2is_ray.workspace.workspace import Workspace

LOSSES = "losses"  # name of the receipt in the stage `warmup`
_ROWS = 32  # rows from the start of the pool that the loss is measured on
_MAX_HARM = 1.02  # largest loss with the adapter / loss without it
_MAX_RATIO = 1.25  # largest ratio of measured and logged loss, in either direction


@torch.no_grad()
def measure(
    workspace: Workspace, settings: ModelSettings, execution: ExecutionSettings, max_tokens: int
) -> dict[str, Any]:
    """Write and return the receipt `losses` of the warm-up.

    The receipt holds `rows`, the number of rows measured from the start of the pool; `tuned`, their
    mean loss per supervised token with the last checkpoint's adapter; and `base`, without it.
    """
    tokenizer = loading.load_tokenizer(settings)
    encoder = ChatEncoder(tokenizer, max_tokens=max_tokens, template_date=settings.template_date)
    rows = itertools.islice(ExampleSet(workspace, POOL).read_all(COLUMNS), _ROWS)
    encoded = [encoder.encode(Conversation.from_columns(row)) for row in rows]
    model: Any = checkpoints.load_model(workspace, settings, execution.attention)
    pad_id, budget = tokenizer.pad_token_id or 0, loading.token_budget(execution)
    tuned = _loss(model, encoded, pad_id, budget)
    with model.disable_adapter():
        base = _loss(model, encoded, pad_id, budget)
    facts = {"rows": len(encoded), "tuned": tuned, "base": base}
    return workspace.stage(WARMUP).commit(LOSSES, {}, facts)


def _loss(model: Any, encoded: list[Encoded], pad_id: int, budget: int) -> float:
    supervised = SupervisedLoss(model)
    total = 0.0
    for indices in batches_by_length([len(one.input_ids) for one in encoded], budget):
        batch = Batch.of([encoded[i] for i in indices], pad_id, model.device)
        total += float(supervised.sums(batch).sum())
    return total / sum(one.supervised_tokens for one in encoded)


def doubt(losses: Mapping[str, Any], receipt: Mapping[str, Any], model: str) -> str:
    """Return why the adapter seems trained on another base model or other rows, or "".

    Args:
        losses: the receipt that `measure` writes.
        receipt: the receipt of the imported warm-up.
        model: name of the workspace's model.
    """
    logged, tuned, base = receipt.get("train_loss"), losses["tuned"], losses["base"]
    harms = not tuned <= _MAX_HARM * base
    known = logged is not None and logged > 0 and tuned > 0
    apart = known and abs(math.log(tuned / logged)) > math.log(_MAX_RATIO)
    if not harms and not apart:
        return ""
    in_log = f", and {logged:.3f} in its training's log" if logged is not None else ""
    return (
        f"the imported adapter has a loss of {tuned:.3f} on {losses['rows']} rows of the pool, "
        f"where the model without it has {base:.3f}{in_log}; make sure that its base, "
        f"{receipt.get('base') or 'which it does not name'}, is the model here, {model}, and that "
        "it was trained on rows like those of the pool"
    )
