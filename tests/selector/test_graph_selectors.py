"""Selectors by the graph: what its shape must not decide, and pools without links or relevance."""

import numpy as np
import pytest
from selection_workspace import clustered, graph_of

from g2is_ray.features.vectors import normalize
from g2is_ray.selector.graph import lazy_greedy
from g2is_ray.selector.interface import Pool, Target
from g2is_ray.selector.registry import find

ROWS, TARGET_ROWS = 60, 5


@pytest.fixture
def x() -> np.ndarray:
    return normalize(clustered(ROWS, np.random.default_rng(0)))


@pytest.fixture
def target() -> Target:
    features = normalize(clustered(TARGET_ROWS, np.random.default_rng(1)))
    return Target(features=features, texts=[], subtasks=[""] * TARGET_ROWS)


@pytest.mark.parametrize("sign", [1, -1], ids=["relevant", "nothing relevant"])
@pytest.mark.parametrize("linked", [True, False])
def test_every_free_row_is_picked_in_the_end(sign, linked, x, target):
    selector, free = find("facility-location")(), np.arange(ROWS) % 3 > 0
    products = sign * np.abs(selector.directions(target) @ x.T)
    graph = graph_of(x, 4)
    if not linked:
        graph = {"neighbors": np.full((ROWS, 4), -1), "similarities": np.zeros((ROWS, 4))}
    picks = list(selector.picks(Pool(free=free, **graph), target, products))
    assert sorted(row for row, _ in picks) == np.flatnonzero(free).tolist()
    scores = [score for _, score in picks]
    assert scores == sorted(scores, reverse=True)
    assert (scores[0] > 0) == (sign > 0)


def test_lazy_greedy_is_greedy_with_fewer_gains() -> None:
    rng = np.random.default_rng(0)
    sets = [set(rng.integers(0, 100, 8).tolist()) for _ in range(ROWS)]
    free = np.ones(ROWS, dtype=bool)
    calls = 0

    def gain(row: int) -> float:
        nonlocal calls
        calls += 1
        return len(sets[row] - covered)

    covered: set[int] = set()
    lazy = []
    alone = np.array([float(len(own)) for own in sets])
    for row, _ in lazy_greedy(gain, alone, free):
        covered |= sets[row]
        lazy.append(row)
    asked, covered, plain = calls, set(), []
    while len(plain) < ROWS:
        left = [row for row in range(ROWS) if row not in plain]
        plain.append(min(left, key=lambda row: (-gain(row), row)))
        covered |= sets[plain[-1]]
    assert lazy == plain
    assert asked < (calls - asked) / 3
