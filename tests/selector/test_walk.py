"""The walk reproduces the authors' implementation, and keeps its own promises beyond it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from g2is_ray.config import WalkSettings
from g2is_ray.features.rows import ArrayRows
from g2is_ray.features.vectors import normalize
from g2is_ray.graph.search import knn_graph
from g2is_ray.selection.selection import Selection, select
from g2is_ray.selector.walk import dot_products, walk

ORACLES = sorted((Path(__file__).parents[1] / "oracle").glob("*.json"))


def published(**changes: object) -> WalkSettings:
    return WalkSettings(
        **({"pca": "centered", "orient": False, "on_exhausted": "stop"} | changes)  # type: ignore[arg-type]
    )


def run_oracle(path: Path, on_exhausted: str) -> tuple[dict, np.lib.npyio.NpzFile, Selection]:
    wanted, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    settings = published(
        on_exhausted=on_exhausted,
        **{name: wanted[name] for name in ("fraction", "delta", "explained_variance")},
    )
    x = normalize(arrays["train"])
    return wanted, arrays, select(ArrayRows(x), arrays["graph"], arrays["target"], settings)


@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_selection_equals_the_authors(path: Path) -> None:
    wanted, _, selection = run_oracle(path, "stop")
    assert selection.rows == wanted["selected"]
    assert selection.summary()["budget"] == wanted["budget"]
    assert selection.summary()["components"] == wanted["components"]


@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_restart_fills_the_budget_and_begins_as_published(path: Path) -> None:
    wanted, _, selection = run_oracle(path, "restart")
    assert len(set(selection.rows)) == len(selection.rows) == wanted["budget"]
    first = [pick.row for pick in selection.picks if pick.component == 0]
    _, _, stopped = run_oracle(path, "stop")
    published_first = [pick.row for pick in stopped.picks if pick.component == 0]
    assert first[: len(published_first)] == published_first


@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_each_step_says_what_happened(path: Path) -> None:
    _, arrays, selection = run_oracle(path, "restart")
    x = normalize(arrays["train"])
    last = -1
    for pick in selection.picks:
        component = selection.knowledge.components[pick.component]
        if pick.step == "neighbor":
            assert pick.row in arrays["graph"][last]
            assert pick.similarity == pytest.approx(float(x[last] @ x[pick.row]), abs=1e-5)
        else:
            assert pick.similarity == pytest.approx(float(x[pick.row] @ component), abs=1e-5)
        last = pick.row
    assert [pick.rank for pick in selection.picks] == list(range(len(selection.picks)))


@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_no_pick_conflicts_with_those_since_its_anchor(path: Path) -> None:
    _, arrays, selection = run_oracle(path, "restart")
    x = normalize(arrays["train"]).astype(np.float64)
    members: list[int] = []
    for pick in selection.picks:
        if pick.step == "anchor":
            members = []
        assert (x[members] @ x[pick.row] >= -1e-6).all()
        members.append(pick.row)


def test_invalid_rows_are_never_picked() -> None:
    rng = np.random.default_rng(0)
    raw = rng.standard_normal((60, 8)).astype(np.float32)
    raw[::3] = 0
    x = normalize(raw)
    picks = walk(
        ArrayRows(x), knn_graph(x, 5), np.eye(8)[:2], [30, 30], delta=0.8, on_exhausted="restart"
    )
    rows = [pick.row for pick in picks]
    assert sorted(rows) == sorted(set(range(60)) - set(range(0, 60, 3)))


def test_missing_neighbors_are_passed_over() -> None:
    x = normalize(np.random.default_rng(1).random((10, 4), dtype=np.float32))
    none = np.full((10, 3), -1)
    picks = list(walk(ArrayRows(x), none, np.eye(4)[:1], [5], delta=0.0, on_exhausted="restart"))
    assert len(picks) == 5
    assert {pick.step for pick in picks} <= {"anchor", "fallback"}


def test_equal_rows_are_each_picked_once() -> None:
    x = normalize(np.tile(np.arange(1, 5, dtype=np.float32), (20, 1)))
    component = x[:1].astype(np.float64)
    picks = walk(ArrayRows(x), knn_graph(x, 4), component, [20], delta=0.8, on_exhausted="restart")
    assert sorted(pick.row for pick in picks) == list(range(20))


@pytest.mark.parametrize("on_exhausted", ["stop", "restart"])
@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_no_dot_product_with_a_pick_is_formed_twice(
    path: Path, on_exhausted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    formed: Counter[tuple[bytes, bytes]] = Counter()

    def counted(x_bd: np.ndarray, members_sd: np.ndarray) -> np.ndarray:
        formed.update((x.tobytes(), m.tobytes()) for x in x_bd for m in members_sd)
        return dot_products(x_bd, members_sd)

    monkeypatch.setattr("g2is_ray.selector.walk.dot_products", counted)
    _, arrays, selection = run_oracle(path, on_exhausted)
    x = normalize(arrays["train"])
    assert len({row.tobytes() for row in x}) == len(x)  # so that bytes tell rows apart
    of_component = {x[pick.row].tobytes(): pick.component for pick in selection.picks}
    assert formed
    assert max(formed.values()) == 1
    assert {member for _, member in formed} <= of_component.keys()


def test_a_row_that_conflicts_is_not_read_again() -> None:
    class Counted(ArrayRows):
        def __init__(self, x: np.ndarray) -> None:
            super().__init__(x)
            self.reads = np.zeros(len(x), dtype=int)

        def take(self, rows: np.ndarray) -> np.ndarray:
            np.add.at(self.reads, rows, 1)
            return super().take(rows)

    rng = np.random.default_rng(2)
    x = normalize(np.concatenate([rng.random((40, 6)), -rng.random((60, 6))]).astype(np.float32))
    rows, none = Counted(x), np.full((100, 1), -1)
    axis = np.ones((1, 6)) / np.sqrt(6)
    picks = list(walk(rows, none, axis, [100], delta=0.0, on_exhausted="stop"))
    assert sorted(pick.row for pick in picks) == list(range(40))
    assert rows.reads[40:].max() == 1
