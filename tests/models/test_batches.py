"""Which examples go together, and how large a batch may be."""

import time

import numpy as np
import pytest
import torch

from g2is_ray.chat.encoder import IGNORED, Encoded
from g2is_ray.models.batches import Batch, TokenBudget, batches_by_length, pad

CPU = torch.device("cpu")


def encoded(ids, labels):
    return Encoded(input_ids=ids, labels=labels, tokens_before_truncation=len(ids))


ROWS = [
    encoded([5, 6, 7], [IGNORED, 6, 7]),
    encoded([8, 9, 10, 11, 12], [8, IGNORED, 10, IGNORED, 12]),
    encoded([13], [13]),
]


def test_batches_hold_each_example_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 50, size=200).tolist()
    batches = list(batches_by_length(lengths, 120))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        assert max(lengths[i] for i in batch) * len(batch) <= 120 or len(batch) == 1


def test_batches_go_from_long_to_short():
    lengths = [3, 9, 1, 9, 4]
    assert list(batches_by_length(lengths, 9)) == [[1], [3], [4, 0], [2]]


def test_an_example_longer_than_the_budget_is_a_batch_of_its_own():
    assert list(batches_by_length([50, 2, 2], 10)) == [[0], [1, 2]]


def test_padding_is_on_the_right_and_not_supervised():
    ids, labels = pad(ROWS, pad_id=3)
    assert ids.tolist() == [[5, 6, 7, 3, 3], [8, 9, 10, 11, 12], [13, 3, 3, 3, 3]]
    assert labels[0].tolist() == [IGNORED, 6, 7, IGNORED, IGNORED]


def test_a_batch_knows_the_token_before_each_supervised_one():
    batch = Batch.of(ROWS, 3, CPU)
    assert batch.positions_n.tolist() == [0, 1, 5 + 1, 5 + 3]
    assert batch.targets_n.tolist() == [6, 7, 10, 12]
    assert batch.rows_n.tolist() == [0, 0, 1, 1]
    assert batch.counts_b.tolist() == [2, 2, 0]  # a first token has nothing before it


def test_a_budget_that_did_not_fit_is_halved_below_what_was_tried():
    budget = TokenBudget(10_000)
    budget.halve(600)
    assert budget.tokens == 300
    budget.halve(290)
    assert budget.tokens == 145


@pytest.mark.parametrize(("best", "found"), [(512, 512), (4096, 4096), (1000, 1024)])
def test_auto_grows_the_budget_for_as_long_as_it_pays(best, found, monkeypatch):
    """On a machine whose speed grows with the batch up to `best` tokens."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    budget = TokenBudget("auto")
    while budget.searching:
        began, tokens = clock[0], budget.tokens
        clock[0] += max(tokens, best) / 1000
        budget.watch(tokens, began)
    assert budget.tokens == found


def test_auto_learns_nothing_from_a_batch_that_is_mostly_empty():
    budget = TokenBudget("auto")
    for _ in range(10):
        budget.watch(budget.tokens // 2, time.perf_counter() - 1)
    assert budget.searching and budget.tokens == TokenBudget("auto").tokens


def test_memory_ends_the_search():
    budget = TokenBudget("auto")
    budget.halve(budget.tokens)
    assert not budget.searching
