"""Made-up records of a report, and a parser of pages, for tests of pages."""

import dataclasses
import html.parser
import re
from collections import Counter

import numpy as np

from g2is_ray.report.pool_map import MapPoints
from g2is_ray.report.views import (
    ComponentRow,
    ModelScore,
    PickView,
    RunView,
    SelectionView,
    TargetView,
    Timing,
)

HOSTILE = (
    "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>"
    "{{ 7 * 7 }}\x00\x1b[31m\u202egnp.exe\ud800</style></title></textarea>" + "A" * 50_000
)


def selection(name: str, picks: list[PickView], components: int = 3, **changes) -> SelectionView:
    """A selection whose component rows agree with its picks."""
    steps = Counter((pick.component, pick.step) for pick in picks)
    rows = [
        ComponentRow(
            index=index,
            weight=1 / components,
            explained_variance_ratio=0.5 / components,
            budget=len(picks) // components,
            selected=sum(pick.component == index for pick in picks),
            anchors=steps[index, "anchor"],
            neighbors=steps[index, "neighbor"],
            fallbacks=steps[index, "fallback"],
            conflicting=123_400 + index,
            inconsistent=901_200 + index,
        )
        for index in range(1, components + 1)
    ]
    view = SelectionView(
        name=name,
        title=f"{name} procedure",
        settings={"delta": 0.8, "center": True},
        budget=len(picks),
        components=rows,
        picks=picks,
        selected_groups=dict(Counter(pick.group for pick in picks)),
    )
    return dataclasses.replace(view, **changes)


def walk_picks(count: int, components: int = 3, sources: int = 4) -> list[PickView]:
    """`count` picks, component after component, each with an anchor, steps and fallbacks."""
    picks = []
    for place in range(count):
        component = 1 + place * components // count
        first = not picks or picks[-1].component != component
        step = "anchor" if first else "fallback" if place % 7 == 3 else "neighbor"
        fields = {"rank": place + 1, "row": 3 * place, "id": f"id-{place}", "step": step}
        fields |= {"component": component, "group": f"source-{place % sources}"}
        fields |= {"similarity": 0.4137 if first else 0.8321, "text": f"What is {place} + 1?"}
        picks.append(PickView(answer=f"It is {place + 1}.", **fields))
    return picks


def score(name: str, role: str, loss: float, **changes) -> ModelScore:
    fields = {"examples": 30, "steps": 12, "train_tokens": 12_345, "seed": 0}
    fields |= {"test_tokens": 4_000, "exact_match": 0.25, "exact_match_rows": 120}
    return ModelScore(name=name, role=role, loss=loss, **(fields | changes))


def target(name: str = "math", count: int = 30, **changes) -> TargetView:
    untuned = dict.fromkeys(("examples", "steps", "train_tokens", "seed"))
    view = TargetView(
        name=name,
        rows=50,
        test_rows=120,
        groups={"source-0": 50},
        main=selection("main", walk_picks(count)),
        others=[selection("paper", walk_picks(count, sources=5))],
        scores=[
            score("base", "base", 1.345, **untuned),
            score("selection", "selection", 1.134),
            score("random", "baseline", 1.188, train_tokens=9_272),
        ],
    )
    return dataclasses.replace(view, **changes)


def run(**changes) -> RunView:
    view = RunView(
        model="SmolLM2-135M-Instruct",
        workspace="/data/run",
        version="0.1.0",
        created="2025-11-23 12:00",
        machine="two cores",
        pool_rows=2_000,
        rejected_rows=17,
        truncated_rows=23,
        invalid_rows=5,
        pool_groups={f"source-{i}": 200 * (i + 1) for i in range(4)},
        settings={"gradients": {"dimensions": 8_192}},
        timings=[Timing("gradients", 3_725.0, 2), Timing("walk", 1.5, 1)],
        graph={"neighbors": 32, "center": True, "mean_similarity": 0.4125},
    )
    return dataclasses.replace(view, **changes)


def some_points(count: int = 120, sources: int = 4) -> MapPoints:
    xy = np.random.default_rng(0).normal(size=(count, 2))
    return MapPoints(
        xy=xy, rows=np.arange(count), groups=[f"source-{i % sources}" for i in range(count)]
    )


class Page(html.parser.HTMLParser):
    """Elements and texts of a page; fails on elements closed in the wrong order."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.elements[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))
