"""The arithmetic of benchmarks/evidence_grid.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.comparison.significance import paired_interval
from g2is_ray.config import ModelSettings
from g2is_ray.models import loading

ROOT = Path(__file__).resolve().parents[1]
TINY = ModelSettings(model=str(ROOT / "examples/tiny-lm"))


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def row(prompt: str, reply: str, answer: str) -> dict[str, Any]:
    turns = [("user", prompt), ("assistant", reply)]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, "answer": answer, "source": "any"}


def test_p_value_is_five_percent_where_the_interval_ends_at_zero() -> None:
    from grid.tables import p_value

    rng = np.random.default_rng(0)
    weights = rng.integers(1, 9, 50).astype(float)
    differences = rng.normal(0, 1, (3, 50)) * weights
    first = paired_interval(differences, weights)
    differences -= first.low * weights
    moved = paired_interval(differences, weights)
    assert moved.low == pytest.approx(0, abs=1e-12)
    assert p_value(moved, differences, weights) == pytest.approx(0.05)


def test_holm_stops_at_the_first_that_is_not_rejected() -> None:
    from grid.tables import holm

    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.011, 0.02, 0.001]) == [True, True, True]
    assert holm([0.2, 0.04]) == [False, False]


def test_possible_answers_are_read_from_every_form_of_question() -> None:
    from grid.data import closed_set

    letters = row("Which?\nOptions:\n(A) one\n(B) two", "So the answer is (B).", "(B)")
    items = row("Where?\nOptions:\n- new york\n- maine", "Think.\nThe answer is maine.", "maine")
    formats = row("Is it?\n\nAnswer format: true/false", "the correct answer is true", "true")
    plain = row("not True is", "So the answer is False.", "False")
    number = row("How many?", "It is 3.\n#### 3", "3")
    assert closed_set(letters, [letters]) == ["(A)", "(B)"]
    assert closed_set(items, [items]) == ["new york", "maine"]
    assert closed_set(formats, [formats]) == ["true", "false"]
    assert closed_set(plain, [plain, plain | {"answer": "True"}]) == ["False", "True"]
    assert closed_set(number, [number]) == []


def test_losses_of_options_differ_as_those_of_whole_replies_do() -> None:
    from grid.data import with_answer
    from grid.measure import option_losses, token_losses

    encoder = ChatEncoder(loading.load_tokenizer(TINY), max_tokens=64)
    model = loading.load_base(TINY, torch.device("cpu")).eval()
    one = row("Where is it?", "I think so.\nThe answer is maine.", "maine")
    texts = ["maine", "new york city", "a"]
    options = [encoder.encode(with_answer(one, text)) for text in texts]
    found = option_losses(model, options, 0)
    whole = np.array([each.sum() for each in token_losses(model, options, 0)])
    np.testing.assert_allclose(found - found[0], whole - whole[0], atol=1e-3)
