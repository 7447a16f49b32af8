"""Batches of examples: which go together, padded, and what they are to predict.

Shapes: b examples, t tokens, n supervised tokens of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from g2is_ray.chat.encoder import IGNORED, Encoded
from g2is_ray.errors import SettingError
from g2is_ray.models.rope import Regimes

NO_REGIMES = Regimes()


def batch_end(
    lengths: Sequence[int], start: int, token_budget: int, regimes: Regimes = NO_REGIMES
) -> int:
    """Where the batch that begins at `start` ends, so that longest x count fits the budget.

    Args:
        lengths: tokens of each example, falling.
        token_budget: of padded tokens; a single example may exceed it.
        regimes: a batch is within one regime of the model's rotary embeddings.
    """
    stop = min(len(lengths), start + max(1, token_budget // lengths[start]))
    if regimes:
        same = regimes.of(lengths[start])
        return next((i for i in range(start, stop) if regimes.of(lengths[i]) != same), stop)
    return stop


def by_length(lengths: Sequence[int]) -> list[int]:
    """Indices from long to short: little padding, and what does not fit shows at once."""
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def batches_by_length(
    lengths: Sequence[int], token_budget: int, regimes: Regimes = NO_REGIMES
) -> Iterator[list[int]]:
    """Every index of `lengths` once, in batches of at most `token_budget` padded tokens."""
    order = by_length(lengths)
    falling = [lengths[i] for i in order]
    start = 0
    while start < len(order):
        stop = batch_end(falling, start, token_budget, regimes)
        yield order[start:stop]
        start = stop


class TokenBudget:
    """How many padded tokens a batch may have; what was learned stays for later batches.

    Args:
        tokens: the budget, or `auto` to find it: it is doubled for as long as batches of
            twice the size process a token at least 5 % faster.
    """

    _FIRST = 512
    _GAIN = 1.05
    _TRIES = 2  # batches of each size; the first of a size may also pay for its set-up

    def __init__(self, tokens: int | Literal["auto"]) -> None:
        self.searching = tokens == "auto"
        self.tokens = self._FIRST if tokens == "auto" else int(tokens)
        self._before = 0.0  # tokens/s at half this budget
        self._rates: list[float] = []

    def halve(self, tried: int) -> None:
        """A batch of `tried` padded tokens did not fit into memory."""
        self.tokens = max(1, min(self.tokens, tried) // 2)
        self.searching = False

    def watch(self, padded_tokens: int, began: float) -> None:
        """Learn from a batch that began at `began` (`time.perf_counter`) and just ended."""
        if not self.searching or padded_tokens < 0.75 * self.tokens:
            return
        self._rates.append(padded_tokens / (time.perf_counter() - began))
        if len(self._rates) < self._TRIES:
            return
        rate = max(self._rates)
        self._rates.clear()
        if rate < self._GAIN * self._before:
            self.tokens //= 2
            self.searching = False
        else:
            self._before = rate
            self.tokens *= 2


def compute_batches(
    lengths: Sequence[int],
    budget: TokenBudget,
    device: torch.device,
    compute: Callable[[int, int], None],
    *,
    remedy: str = "set max_tokens lower",
    regimes: Regimes = NO_REGIMES,
) -> None:
    """Call `compute` with begin and end of one batch after another.

    A batch that does not fit into memory is begun anew, smaller.

    Args:
        lengths: tokens of each example, falling.
        remedy: what to do about an example that does not fit by itself.
        regimes: each batch is within one regime of the model's rotary embeddings.

    Raises:
        SettingError: there is such an example; says how long it is.
    """
    start = 0
    while start < len(lengths):
        stop = batch_end(lengths, start, budget.tokens, regimes)
        padded_tokens = lengths[start] * (stop - start)
        began = time.perf_counter()
        if not _fits(compute, start, stop):
            if stop - start == 1:
                raise SettingError(
                    f"an example of {lengths[start]} tokens does not fit into memory by itself: "
                    f"{remedy}"
                )
            if device.type == "cuda":
                torch.cuda.empty_cache()
            budget.halve(padded_tokens)
            continue
        if budget.searching:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            budget.watch(padded_tokens, began)
        start = stop


def _fits(compute: Callable[[int, int], None], start: int, stop: int) -> bool:
    """Compute a batch; False if memory does not suffice.

    The error, which holds the batch's tensors, is gone when this returns.
    """
    try:
        compute(start, stop)
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        return False
    return True


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "DefaultCPUAllocator" in str(error) and "allocate" in str(error)
    )


def pad(examples: Sequence[Encoded], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, each int64 [b, t], padded on the right."""
    longest = max(len(one.input_ids) for one in examples)
    ids = torch.full((len(examples), longest), pad_id)
    labels = torch.full_like(ids, IGNORED)
    for row, one in enumerate(examples):
        length = len(one.input_ids)
        ids[row, :length] = torch.tensor(one.input_ids)
        labels[row, :length] = torch.tensor(one.labels)
    return ids, labels


@dataclass(frozen=True)
class Batch:
    """A padded batch on a device, and where its supervised tokens are.

    There is no attention mask: a causal model's tokens look back only, so padding on the
    right is seen by padding alone, whose outputs nobody uses.
    """

    ids_bt: torch.Tensor
    positions_n: torch.Tensor  # of the tokens before the supervised ones, in [0, b·t)
    targets_n: torch.Tensor  # the supervised tokens' ids
    rows_n: torch.Tensor  # the example that each belongs to
    counts_b: torch.Tensor  # supervised tokens of each example

    @classmethod
    def of(cls, examples: Sequence[Encoded], pad_id: int, device: torch.device) -> Batch:
        """Worked out on the host and copied without waiting for the device."""
        ids_bt, labels_bt = pad(examples, pad_id)
        next_bt = torch.nn.functional.pad(labels_bt[:, 1:], (0, 1), value=IGNORED)
        supervised_bt = next_bt != IGNORED
        positions_n = supervised_bt.flatten().nonzero()[:, 0]
        held: tuple[torch.Tensor, ...] = (
            ids_bt,
            positions_n,
            next_bt.flatten()[positions_n],
            positions_n // ids_bt.shape[1],
            supervised_bt.sum(dim=1),
        )
        if device.type == "cuda":
            held = tuple(tensor.pin_memory() for tensor in held)
        return cls(*(tensor.to(device, non_blocking=True) for tensor in held))
