"""What the benchmarks work on: a model with a random adapter, and rows of a pool."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch

from g2is_ray import models
from g2is_ray.chat import ChatEncoder, Encoded
from g2is_ray.config import LoraSettings, ModelSettings
from g2is_ray.reading import Example, read_examples


def pool_rows(settings: ModelSettings, pool: str, count: int, max_tokens: int) -> list[Encoded]:
    """Evenly spaced rows of a pool, as many as asked for."""
    encoder = ChatEncoder(models.load_tokenizer(settings), max_tokens=max_tokens)
    held = [one for one in read_examples([pool]) if isinstance(one, Example)]
    chosen = islice(held, 0, None, max(1, len(held) // count))
    return [encoder.encode(one.messages) for one in islice(chosen, count)]


def put_adapter(base: Any, lora: LoraSettings) -> Any:
    """`base` with an adapter, A and B alike from N(0, 0.02²): with B = 0, A has no gradient."""
    model = models.add_adapter(base, lora, seed=0).eval()
    for parameter in models.lora_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.02)
    return model
