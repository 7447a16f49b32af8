"""What the benchmarks share: a model with an adapter, rows of a pool, a rate to compare with."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import numpy as np
import torch

from g2is_ray.chat.conversation import COLUMNS, Conversation
from g2is_ray.chat.encoder import ChatEncoder, Encoded
from g2is_ray.config import LoraSettings, ModelSettings, ReadSettings, build
from g2is_ray.data.examples import ExampleSet
from g2is_ray.data.reading import Example, read_examples
from g2is_ray.models import checkpoints, loading
from g2is_ray.workspace.workspace import Workspace


def pool_rows(settings: ModelSettings, pool: str, count: int, max_tokens: int) -> list[Encoded]:
    """Evenly spaced rows of a pool, as many as asked for."""
    encoder = ChatEncoder(loading.load_tokenizer(settings), max_tokens=max_tokens)
    held = [one for one in read_examples([pool]) if isinstance(one, Example)]
    chosen = islice(held, 0, None, max(1, len(held) // count))
    return [encoder.encode(one.conversation) for one in islice(chosen, count)]


def put_adapter(base: Any, lora: LoraSettings) -> Any:
    """`base` with an adapter, A and B alike from N(0, 0.02²): with B = 0, A has no gradient."""
    model = loading.add_adapter(base, lora, seed=0).eval()
    for parameter in loading.lora_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def workspace_rows(workspace: Workspace, count: int) -> list[Encoded]:
    """Evenly spaced rows of a workspace's pool, as its gradients would be taken of."""
    recorded = workspace.stages()["pool"]["arguments"]
    tokenizer = loading.load_tokenizer(build(ModelSettings, recorded))
    encoder = ChatEncoder(tokenizer, max_tokens=build(ReadSettings, recorded).max_tokens)
    pool = ExampleSet(workspace, "pool")
    chosen = np.linspace(0, pool.rows - 1, count).astype(int).tolist()
    return [encoder.encode(Conversation.from_columns(row)) for row in pool.take(chosen, COLUMNS)]


def warmed_model(workspace: Workspace, **settings: Any) -> tuple[Any, loading.Moments]:
    """The model with its warmed-up adapter, and AdamW's moments after the warm-up.

    Args:
        settings: of `ModelSettings`, in place of those that the pool was read with.
    """
    recorded = workspace.stages()["pool"]["arguments"]
    model = checkpoints.load_model(workspace, build(ModelSettings, recorded | settings))
    last = len(checkpoints.weights(workspace))
    return model, checkpoints.put(model, checkpoints.read(workspace, last))


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product, the fastest of five."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)
