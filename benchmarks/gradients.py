"""Examples per second of the gradient stage, beside plain autograd at batch 1.

    python benchmarks/gradients.py --model examples/tiny-lm --pool examples/data/pool.jsonl

Both run in one process on the same rows and threads, in turns, so that their ratio means
something on a noisy machine. The plain loop takes one example at a time and stops at the
flat gradient vector: no adjusting, no projection. The gradient stage does all of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from g2is_ray import models
from g2is_ray.chat import ChatEncoder, Encoded
from g2is_ray.config import LoraSettings, ModelSettings
from g2is_ray.gradients import GradientComputer, pad
from g2is_ray.projection import SparseProjection
from g2is_ray.reading import Example, read_examples


def plain_loop(model: Any, rows: Sequence[Encoded]) -> None:
    """Autograd on one example at a time, to one flat vector each."""
    parameters = list(models.lora_parameters(model).values())
    for row in rows:
        model.zero_grad()
        ids, mask, labels = pad([row], 0, model.device)
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.cat([parameter.grad.flatten() for parameter in parameters])


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def with_adapter(settings: ModelSettings, rank: int) -> Any:
    base = models.load_base(settings, models.default_device())
    model = models.add_adapter(base, LoraSettings(lora_r=rank), seed=0).eval()
    for parameter in models.lora_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pool", required=True)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--lora-r", type=int, default=8)
    parser.add_argument("--token-budget", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()

    settings = ModelSettings(model=given.model)
    encoder = ChatEncoder(models.load_tokenizer(settings), max_tokens=given.max_tokens)
    examples = (one for one in read_examples([given.pool]) if isinstance(one, Example))
    rows = [encoder.encode(one.messages) for one, _ in zip(examples, range(given.rows))]  # noqa: B905
    tokens = sum(len(row.input_ids) for row in rows)

    plain = with_adapter(settings, given.lora_r)
    hooked = with_adapter(settings, given.lora_r)
    moments = {
        name: (torch.zeros_like(p), torch.ones_like(p))
        for name, p in models.lora_parameters(hooked).items()
    }
    projection = SparseProjection(8192, 0)
    computer = GradientComputer(hooked, projection.add, 8192, moments, pad_id=0)
    computer.compute(rows[:2], given.token_budget, adjust=True)  # builds the projection's tables
    ours, theirs = [], []
    for _ in range(given.turns):
        ours.append(seconds(lambda: computer.compute(rows, given.token_budget, adjust=True)))
        theirs.append(seconds(lambda: plain_loop(plain, rows)))
    print(
        f"{len(rows)} rows, {tokens / len(rows):.0f} tokens each, {torch.get_num_threads()} threads"
    )
    for name, found in (("gradient stage", ours), ("plain autograd, batch 1", theirs)):
        best = min(found)
        print(f"{name:24} {len(rows) / best:8.2f} examples/s {tokens / best:10.0f} tokens/s")
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    print(f"ratio, turn by turn: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
