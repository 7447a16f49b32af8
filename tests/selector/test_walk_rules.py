"""The walk's options pick what a literal transcription of their rules picks, and count alike."""

from collections import Counter

import numpy as np
import pytest

from g2is_ray.config import WalkSettings
from g2is_ray.features.rows import ArrayRows
from g2is_ray.features.vectors import normalize
from g2is_ray.graph.search import knn_graph
from g2is_ray.selection.budget import Budget
from g2is_ray.selection.selection import carry_out, knowledge_of
from g2is_ray.selector.walk import Pick, align, dot_products, walk

ROWS, DIMENSIONS = 60, 6
CONFLICT, INCONSISTENT = "conflicting", "inconsistent"


@pytest.fixture(autouse=True)
def compared_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with many more rows and picks than are looked at first."""
    monkeypatch.setattr("g2is_ray.selector.walk._FIRST_BLOCK", 2)
    monkeypatch.setattr("g2is_ray.selector.walk._FIRST_MEMBERS", 2)


def small_numbers(rows: int, rng: np.random.Generator) -> np.ndarray:
    """Rows [n, d] of quarters, so that dot products are exact, ties included."""
    return (rng.integers(-2, 4, (rows, DIMENSIONS)) / 4).astype(np.float32)


def cosine(c: np.ndarray, rows: np.ndarray) -> float:
    total = rows.sum(axis=0)
    return abs(float(c @ total)) / np.sqrt(float(total @ total)) if total.any() else 0.0


def transcribed(x, near, components, budgets, rules: WalkSettings) -> list[tuple]:
    """Picks as (row, component, step, neighbors passed over by rule), all anew at every step."""
    x = x.astype(np.float64)
    picks: list[tuple] = []
    rows: list[int] = []

    def broken(row: int, path: list[int], c: np.ndarray) -> str:
        """The first rule that a row breaks, if it breaks one."""
        if any(x[row] @ x[y] < 0 for y in path):
            return CONFLICT
        kept = cosine(c, x[[*path, row]]) >= rules.delta * cosine(c, x[path])
        return "" if kept else INCONSISTENT

    for index, (c, budget) in enumerate(zip(components, budgets, strict=True)):
        path: list[int] = []
        until = len(rows) + budget
        while len(rows) < until:
            free = [row for row in range(len(x)) if x[row].any() and row not in rows]
            by_component = sorted(free, key=lambda row: (-float(c @ x[row]), row))
            passed: Counter[str] = Counter()
            found, step = None, "neighbor"
            if path:
                for row in (row for row in near[path[-1]] if row in free):
                    if not (rule := broken(row, path, c)):
                        found = int(row)
                        break
                    passed[rule] += 1
                if found is None:
                    step = "fallback"
                    fits = (row for row in by_component if not broken(row, path, c))
                    found = next(fits, None)
                if found is None and rules.on_exhausted == "stop":
                    break
            if found is None:
                step, path = "anchor", []
                found = next(iter(by_component), None)
            if found is None:
                break
            path.append(found)
            rows.append(found)
            picks.append((found, index, step, passed))
    return picks


def told(pick: Pick) -> tuple:
    counts = {rule: getattr(pick, rule) for rule in (CONFLICT, INCONSISTENT)}
    return pick.row, pick.component, pick.step, Counter(counts)


@pytest.mark.parametrize("on_exhausted", ["stop", "restart"])
def test_a_walk_is_its_rules(on_exhausted):
    steps, passed = Counter[str](), Counter[str]()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x, components = small_numbers(ROWS, rng), small_numbers(3, rng)
        x[[4, 33]] = 0
        x[[50, 20]] = x[[7, 21]]
        near, budgets = knn_graph(x, 8), [12, 9, 6]
        found = list(
            walk(ArrayRows(x), near, components, budgets, delta=0.9, on_exhausted=on_exhausted)
        )
        wanted = transcribed(
            x, near, components, budgets, WalkSettings(delta=0.9, on_exhausted=on_exhausted)
        )
        assert [told(pick) for pick in found] == wanted
        steps.update(pick.step for pick in found)
        passed += sum((told(pick)[-1] for pick in found), Counter())
    assert min(steps[step] for step in ("anchor", "neighbor", "fallback")) > 0
    assert passed[CONFLICT] > 0
    assert passed[INCONSISTENT] > 0


def unit_rows(rows: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return normalize((rng.standard_normal((rows, DIMENSIONS)) + 0.3).astype(np.float32))


def test_it_goes_on_after_any_component_as_if_it_had_not_ended():
    settings = WalkSettings(explained_variance=1.0)
    x, near = ArrayRows(unit_rows(200)), knn_graph(unit_rows(200), 6)
    knowledge = knowledge_of(unit_rows(20)[::2], DIMENSIONS, settings)
    [along], valid = align(x, [knowledge.directions])
    pieces: list[list[Pick]] = []

    def walked(earlier: list[list[Pick]], save=None) -> list[Pick]:
        given = (knowledge, x, near, along, valid, settings, Budget(amount=60))
        return carry_out(*given, earlier=earlier, save=save).picks

    whole = walked([], lambda component, picks: pieces.append(picks))
    assert len(pieces) == DIMENSIONS
    for ended in range(1, DIMENSIONS):
        assert walked(pieces[:ended]) == whole


def test_a_walk_within_the_nearest_rows_is_one_on_which_no_others_may_be_picked():
    x, near, target = ArrayRows(unit_rows(200)), knn_graph(unit_rows(200), 6), unit_rows(30)[::3]
    settings = WalkSettings(within=0.25)
    knowledge = knowledge_of(target, DIMENSIONS, settings)
    [along], valid = align(x, [knowledge.directions])
    nearest = np.argsort(-(unit_rows(200) @ target.mean(axis=0)), kind="stable")[:50]
    masked = np.isin(np.arange(200), nearest)

    def walked(valid: np.ndarray, settings: WalkSettings) -> list[Pick]:
        return carry_out(knowledge, x, near, along, valid, settings, Budget(amount=40)).picks

    assert (
        walked(valid, settings) == walked(masked, WalkSettings()) != walked(valid, WalkSettings())
    )


def test_a_path_forms_no_dot_product_twice(monkeypatch):
    formed: Counter[tuple[bytes, bytes]] = Counter()

    def counted(x_bd: np.ndarray, members_sd: np.ndarray) -> np.ndarray:
        formed.update((x.tobytes(), y.tobytes()) for x in x_bd for y in members_sd)
        return dot_products(x_bd, members_sd)

    monkeypatch.setattr("g2is_ray.selector.walk.dot_products", counted)
    x = unit_rows(120)
    axis, rules = np.eye(DIMENSIONS)[:1], {"on_exhausted": "stop"}
    picks = list(walk(ArrayRows(x), knn_graph(x, 6), axis, [100], **rules))
    steps = Counter(pick.step for pick in picks)
    assert min(steps["neighbor"], steps["fallback"]) > 1
    assert max(formed.values()) == 1
