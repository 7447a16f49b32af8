"""Each selector picks what a literal transcription of its rule picks, within its budget."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graph_rules import facility_location
from selection_workspace import graph_of

from g2is_ray.config import WALK, WalkSettings
from g2is_ray.errors import InputError
from g2is_ray.features.rows import ArrayRows
from g2is_ray.selection.scan import scan
from g2is_ray.selector.budget import Budget
from g2is_ray.selector.interface import Pool, Selector, Target, descending
from g2is_ray.selector.registry import NAMES, find
from g2is_ray.selector.walking import GradientWalk

ROWS, DIMENSIONS, TARGET_ROWS = 90, 12, 8
INVALID, TWINS = [4, 33], [(7, 50), (11, 80)]  # the second of twins equals the first
OTHERS = [name for name in NAMES if name != WALK]


def small_numbers(rows: int, seed: int) -> np.ndarray:
    """Rows [n, d] of eighths, so that dot products and means are exact, ties included."""
    rng = np.random.default_rng(seed)
    return (rng.integers(-8, 9, (rows, DIMENSIONS)) / 8).astype(np.float32)


def sentences(rows: int, seed: int) -> list[str]:
    """Of 3 to 30 words, some of them common and some rare."""
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"Word{number}" for number in rng.geometric(0.1, rng.integers(3, 31)))
        for _ in range(rows)
    ]


@pytest.fixture
def x() -> np.ndarray:
    x = small_numbers(ROWS, 0)
    x[INVALID] = 0
    for first, second in TWINS:
        x[second] = x[first]
    return x


@pytest.fixture
def texts() -> list[str]:
    texts = sentences(ROWS, 1)
    for first, second in TWINS:
        texts[second] = texts[first]
    return texts


@pytest.fixture
def target() -> Target:
    return Target(
        features=small_numbers(TARGET_ROWS, 2),
        texts=sentences(TARGET_ROWS, 3),
        subtasks=["b", "a"] * (TARGET_ROWS // 2),
    )


@pytest.fixture
def pool(x: np.ndarray, texts: list[str]) -> Pool:
    return Pool(free=x.any(axis=1), texts=lambda: iter(texts), seed=3, **graph_of(x, 6))


def picked(name: str, pool: Pool, target: Target, x: np.ndarray, budget: Budget) -> list[int]:
    selector = find(name)()
    products, _ = scan(ArrayRows(x), [selector.directions(target)])
    return selector.select(pool, [target], products, budget).rows


# ---- the rules, transcribed ------------------------------------------------------


def best(scores: dict[int, float], count: int) -> list[int]:
    return sorted(scores, key=lambda row: (-scores[row], row))[:count]


def turns(scores: list[dict[int, float]], count: int) -> list[int]:
    taken: list[int] = []
    while len(taken) < count:
        own = scores[len(taken) % len(scores)]
        taken.append(best({row: own[row] for row in own if row not in taken}, 1)[0])
    return taken


def influence(x: np.ndarray, target: Target, row: int) -> float:
    means = []
    for name in set(target.subtasks):
        of_subtask = [v for v, s in zip(target.features, target.subtasks, strict=True) if s == name]
        means.append(np.mean([float(x[row] @ v) for v in of_subtask]))
    return max(means)


def less(x, texts, target, free, neighbors, count):
    return best({row: influence(x, target, row) for row in free}, count)


def less_round_robin(x, texts, target, free, neighbors, count):
    return turns([{row: float(x[row] @ v) for row in free} for v in target.features], count)


def graph_diverse(x, texts, target, free, neighbors, count):
    taken: list[int] = []
    round_: list[int] = []
    while len(taken) < count:
        near = {int(near) for row in round_ for near in neighbors[row]}
        rest = [row for row in free if row not in taken and row not in near]
        if rest:
            round_.append(less(x, texts, target, rest, neighbors, 1)[0])
            taken.append(round_[-1])
        else:
            round_ = []
    return taken


def gist(x, texts, target, free, neighbors, count):
    values, vectors = np.linalg.eigh(target.features.astype(float).T @ target.features)
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = next(k for k in range(1, 99) if values[:k].sum() >= 0.9 * values.sum())
    whiten = vectors[:, :keep] / np.sqrt(values[:keep])
    scores = {}
    for row in free:
        z = x[row] @ whiten
        cosines = []
        for name in set(target.subtasks):
            mean = target.features[np.array(target.subtasks) == name].mean(axis=0) @ whiten
            cosines.append(float(z @ mean) / np.linalg.norm(z) / np.linalg.norm(mean))
        scores[row] = round(max(cosines), 5)  # so that twins are equal
    return best(scores, count)


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w\w+", text.lower()))


def tfidf(x, texts, target, free, neighbors, count):
    documents = Counter(word for text in texts for word in words(text))

    def vector(text: str) -> dict[str, float]:
        raw = {
            word: times * (np.log((1 + len(texts)) / (1 + documents[word])) + 1)
            for word, times in words(text).items()
            if word in documents
        }
        length = np.sqrt(sum(value**2 for value in raw.values()))
        return {word: value / length for word, value in raw.items()}

    rows = [vector(text) for text in texts]
    scores = []
    for query in map(vector, target.texts):
        scores.append({r: sum(query[w] * rows[r].get(w, 0) for w in query) for r in free})
    return turns(scores, count)


def bm25(x, texts, target, free, neighbors, count):
    documents = Counter(word for text in texts for word in words(text))
    mean_length = np.mean([words(text).total() for text in texts])

    def score(query: str, text: str) -> float:
        counts, total = words(text), 0.0
        for word in words(query).elements():
            n = documents[word]
            rarity = np.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            damping = 1.5 * (1 - 0.75 + 0.75 * counts.total() / mean_length)
            total += rarity * counts[word] * 2.5 / (counts[word] + damping)
        return total

    return turns([{row: score(query, texts[row]) for row in free} for query in target.texts], count)


RULES = {
    "less": less,
    "less-round-robin": less_round_robin,
    "graph-diverse": graph_diverse,
    "facility-location": facility_location,
    "gist": gist,
    "rds": less_round_robin,
    "tfidf": tfidf,
    "bm25": bm25,
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", [1, 40, ROWS - len(INVALID)])
def test_a_selector_is_its_rule(name, count, pool, target, x, texts):
    free = np.flatnonzero(pool.free).tolist()
    wanted = RULES[name](x, texts, target, free, pool.neighbors, count)
    assert picked(name, pool, target, x, Budget(amount=count)) == wanted


@pytest.mark.parametrize("first_sorted", [1, 2, 50, 1000])
def test_rows_sorted_batch_by_batch_come_in_the_order_of_one_sort(first_sorted):
    scores = np.random.default_rng(0).integers(0, 9, 200).astype(np.float32)
    free = np.arange(200) % 3 > 0
    wanted = [row for row in np.argsort(-scores, kind="stable").tolist() if free[row]]
    assert list(descending(scores, free, first_sorted)) == wanted


def test_every_selector_but_random_has_a_rule_here():
    assert {"random", *RULES} == set(OTHERS)


@pytest.mark.parametrize("name", OTHERS)
def test_a_smaller_budget_gives_the_first_of_the_same_picks(name, pool, target, x):
    many = picked(name, pool, target, x, Budget(amount=1000))
    assert sorted(many) == np.flatnonzero(pool.free).tolist()
    assert picked(name, pool, target, x, Budget(amount=17)) == many[:17]


def test_random_rows_follow_from_the_seed(pool, target, x):
    budget = Budget(amount=30)
    other = Pool(free=pool.free, seed=4)
    assert picked("random", pool, target, x, budget) != picked("random", other, target, x, budget)


# ---- budgets ---------------------------------------------------------------------

TOKENS = np.random.default_rng(5).integers(1, 60, ROWS)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("amount", [60, 333, 1000])
@pytest.mark.parametrize("weights", [(1.0,), (1.0, 3.0)], ids=["one target", "two"])
def test_tokens_are_spent_to_within_a_row(name, amount, weights, pool, target, x):
    selector = find(name)()
    products, _ = scan(ArrayRows(x), [selector.directions(target)] * len(weights))
    targets = [replace(target, weight=weight) for weight in weights]
    budget = Budget(amount=amount, tokens=TOKENS)
    rows = selector.select(pool, targets, products, budget).rows
    assert len(rows) == len(set(rows)) > 0
    assert amount - TOKENS.max() < TOKENS[rows].sum() <= amount


def walked(pool: Pool, target: Target, x: np.ndarray, amount: int, **settings) -> list[int]:
    rows, walk = ArrayRows(x), GradientWalk(WalkSettings(**settings))
    products, valid = scan(rows, [walk.directions(target)])
    budget = Budget(amount=amount, tokens=TOKENS)
    found = walk.select(replace(pool, free=valid, features=rows), [target], products, budget)
    assert [pick.rank for pick in found.picks] == list(range(len(found.picks)))
    return found.rows


@pytest.mark.parametrize("amount", [60, 333, 1000])
@pytest.mark.parametrize("explained_variance", [0.3, 1.0])
def test_a_walk_spends_tokens_to_within_a_row(amount, explained_variance, pool, target, x):
    rows = walked(pool, target, x, amount, explained_variance=explained_variance)
    assert len(rows) == len(set(rows)) > 0
    assert amount - TOKENS.max() < TOKENS[rows].sum() <= amount


def test_a_row_too_long_for_one_component_is_left_to_the_next(pool, target, x):
    all_rows = np.flatnonzero(pool.free)
    rows = walked(pool, target, x, int(TOKENS[all_rows].sum()), explained_variance=1.0)
    assert sorted(rows) == all_rows.tolist()


# ---- a selector of one's own ------------------------------------------------------


class Twice(Selector):
    def picks(self, pool, target, products) -> Iterator[tuple[int, float]]:
        yield from [(1, 0.5), (1, 0.5)]


def test_a_row_that_is_not_free_is_refused(pool, target):
    products = [np.empty((0, ROWS), dtype=np.float32)]
    with pytest.raises(InputError, match="Twice picked row 1, which is picked already"):
        Twice().select(pool, [target], products, Budget(amount=2))


@pytest.mark.parametrize(
    ("source", "name", "problem"),
    [
        (None, "own.py:Own", "FileNotFoundError"),
        ("1 / 0", "own.py:Own", "ZeroDivisionError: division by zero"),
        ("class Own: pass", "own.py:Own", "no class Own that derives from"),
        ("", "own.py:Own", "no class Own that derives from"),
        ("", "no.such.module:Own", "ModuleNotFoundError"),
        (
            "from g2is_ray.selector.interface import Selector\nclass Own(Selector): pass",
            "own.py:Own",
            "Own does not define picks",
        ),
        (
            "from g2is_ray.selector.interface import Selector\n"
            "class Own(Selector):\n reads = frozenset({'text'})\n picks = None",
            "own.py:Own",
            "reads may hold gradients, embeddings, graph, texts, tokens, seed, got text",
        ),
        (
            "from g2is_ray.selector.interface import Selector\n"
            "class Own(Selector):\n reads = frozenset({'gradients', 'embeddings'})",
            "own.py:Own",
            "reads may hold gradients or embeddings, not both",
        ),
    ],
)
def test_what_is_no_selector_is_refused(source, name, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if source is not None:
        Path("own.py").write_text(source)
    with pytest.raises(InputError, match=problem) as refusal:
        find(name)
    assert str(refusal.value).startswith(f"selector {name}: ")
