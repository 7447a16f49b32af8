"""The report escapes all data, shows the right numbers, and renders odd runs."""

import dataclasses
import html
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from report_views import HOSTILE, Page, run, score, selection, some_points, target, walk_picks

from g2is_ray.errors import InputError
from g2is_ray.report.pages import clean, duration
from g2is_ray.report.pool_map import MapPoints, map_points
from g2is_ray.report.run_page import render
from g2is_ray.report.views import Timing
from g2is_ray.selection.lift import own_share


def hostile_page() -> str:
    """A page with hostile text in every text field."""
    picks = [
        dataclasses.replace(pick, id=HOSTILE, group=HOSTILE, text=HOSTILE, answer=HOSTILE)
        for pick in walk_picks(9)
    ]
    picks[-1] = dataclasses.replace(picks[-1], step=HOSTILE, component=None)
    main = selection(HOSTILE, picks, title=HOSTILE, settings={HOSTILE: HOSTILE, "n": [HOSTILE]})
    texts = ("model", "workspace", "version", "created", "machine")
    hostile_run = run(
        **dict.fromkeys(texts, HOSTILE),
        pool_groups={HOSTILE: 100, "other": 3},
        settings={HOSTILE: {HOSTILE: {HOSTILE: HOSTILE}}},
        timings=[Timing(HOSTILE, 1.0, 1)],
        graph={HOSTILE: HOSTILE},
    )
    hostile_target = target(
        name=HOSTILE,
        groups={HOSTILE: 5},
        main=main,
        others=[main, main],
        scores=[score(HOSTILE, "base", 1.0), score("random" + HOSTILE, "baseline", 0.9)],
    )
    points = MapPoints(xy=np.eye(30)[:, :2], rows=np.arange(30), groups=[HOSTILE] * 30)
    return render(hostile_run, [hostile_target, hostile_target], points)


def test_hostile_text_stays_text():
    page = hostile_page()
    parsed = Page(page)
    assert "<script" not in page.lower()
    assert parsed.elements["img"] == parsed.elements["script"] == 0
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert "{{ 7 * 7 }}" in parsed.text
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page
    )
    assert "A" * 3_000 not in page
    page.encode()


def test_page_needs_nothing_from_the_network():
    page = render(run(), [target()], some_points())
    parsed = Page(page)
    assert ("meta", "http-equiv", "Content-Security-Policy") in parsed.attributes
    assert parsed.elements["script"] == parsed.elements["link"] == parsed.elements["img"] == 0
    assert "url(" not in page and "@import" not in page
    loaded = {tag for tag, name, _ in parsed.attributes if name in ("src", "href", "srcset")}
    assert loaded == {"a"}


def test_numbers_of_the_run_are_shown():
    text = Page(render(run(), [target()], some_points())).text
    for shown in ("1.345", "1.134", "1.188", "\u22120.211", "12,345", "25.0%", "better by 0.054"):
        assert shown in text
    assert "30 of 2,000 examples" in text
    assert "17 rows rejected" in text and "23 cut" in text and "5 without" in text
    assert "1 h 02 min" in text
    assert "2502.11062" in text and "2402.04333" in text


def test_picks_come_with_their_reason():
    text = Page(render(run(), [target()], None)).text
    assert "anchor: the unused example closest to component 1 (cos 0.41)" in text
    assert "neighbor of #1 (cos 0.83)" in text
    assert "fallback: no neighbor qualified" in text
    assert "What is 19 + 1?" in text and "What is 20 + 1?" not in text


def test_neighbors_that_were_passed_over_are_counted_by_rule():
    text = Page(render(run(), [target()], None)).text
    for component in (1, 2, 3):
        assert f"123,40{component} 901,20{component}" in text


def test_a_worse_selection_is_called_worse():
    scores = [
        score("base", "base", 2.0),
        score("s", "selection", 1.9),
        score("random", "baseline", 1.8),
    ]
    assert "worse by 0.100" in Page(render(run(), [target(scores=scores)], None)).text


def test_several_seeds_are_averaged_and_a_single_one_gets_a_warning():
    scores = [score("base", "base", 2.0)]
    scores += [score("selection", "selection", loss, seed=s) for s, loss in enumerate((1.2, 1.4))]
    text = Page(render(run(), [target(scores=scores)], None)).text
    assert "from 2.000 to 1.300" in text and "2 seeds" in text
    assert "With one seed" in Page(render(run(), [target()], None)).text


def test_replies_that_were_cut_are_counted():
    scores = [score("base", "base", 2.0, cut_replies=37), score("s", "selection", 1.9)]
    text = Page(render(run(), [target(scores=scores)], None)).text
    assert text.count("cut at the longest reply") == 1
    assert "of 120, 37 cut at the longest reply" in text


def test_unequal_training_tokens_are_pointed_out():
    text = Page(render(run(), [target()], None)).text
    assert "12,345 supervised tokens (selection) against 9,272 (random)" in text


@pytest.mark.parametrize(
    ("selected", "pool", "own", "expected"),
    [
        ({"a": 3, "b": 1}, {"a": 10, "b": 90}, ["a"], 7.5),
        ({"a": 1, "b": 1, "c": 2}, {"a": 10, "b": 15, "c": 75}, {"a": 4, "b": 1}, 2.0),
        ({"b": 4}, {"a": 10, "b": 90}, ["a"], 0.0),
        ({"b": 4}, {"b": 90}, ["a"], None),
        ({}, {"a": 10}, ["a"], None),
        ({}, {}, [], None),
    ],
)
def test_own_share(selected, pool, own, expected):
    assert own_share(selected, pool, own) == (None if expected is None else pytest.approx(expected))


def unit_rows(count: int, dimensions: int) -> np.ndarray:
    rows = np.random.default_rng(1).normal(size=(count, dimensions)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("count", "dimensions"), [(0, 8), (1, 8), (2, 8), (49, 8), (49, 1), (50, 1), (60, 2), (130, 70)]
)
def test_map_is_deterministic(count, dimensions):
    gradients, groups = unit_rows(count, dimensions), ["a"] * count
    one, two = (map_points(gradients, np.arange(count) * 7, groups, seed=3) for _ in range(2))
    assert one.xy.shape == (count, 2)
    assert np.isfinite(one.xy).all()
    np.testing.assert_array_equal(one.xy, two.xy)
    np.testing.assert_array_equal(one.rows, np.arange(count) * 7)


def test_the_map_of_equal_features_is_one_point():
    points = map_points(np.ones((80, 4), np.float32) / 2, np.arange(80), ["a"] * 80, seed=0)
    assert np.abs(points.xy).max() < 1e-3
    assert "<svg" in render(run(), [target()], points)


def test_the_map_refuses_unequal_lengths_and_infinite_features():
    with pytest.raises(InputError, match="one row number"):
        map_points(unit_rows(4, 3), np.arange(3), ["a"] * 4, seed=0)
    with pytest.raises(InputError, match="not finite"):
        map_points(np.full((4, 3), np.nan), np.arange(4), ["a"] * 4, seed=0)


def test_map_shows_the_selected_rows_with_rings_on_anchors():
    page = render(run(), [target(others=[])], some_points())
    assert page.count('class="pick ') == 30
    assert page.count('class="ring ') == 3
    assert "#2 neighbor, component 1, cos 0.83, source-1, row 3" in page


@pytest.mark.parametrize(
    "odd",
    [
        target(scores=[]),
        target(scores=[score("selection", "selection", math.nan, exact_match=None)]),
        target(main=selection("main", []), others=[selection("random", [], components=0)]),
        target(main=selection("main", walk_picks(5, components=1), components=1)),
        target(main=selection("main", walk_picks(60, components=40), components=40)),
        target(main=selection("main", walk_picks(1, components=1), components=1), others=[]),
        target(groups={"elsewhere": 3}),
        target(groups={}, others=[selection(f"o{i}", walk_picks(9)) for i in range(6)]),
    ],
    ids=["no scores", "nan", "no picks", "1 component", "40", "1 pick", "foreign", "6 others"],
)
@pytest.mark.parametrize(
    "points", [None, some_points(), some_points(1)], ids=["no map", "map", "dot"]
)
def test_odd_targets_render(odd, points):
    parsed = Page(render(run(), [odd], points))
    assert "nan" not in parsed.text.lower().split()
    assert "None" not in parsed.text.split()


def test_empty_run_renders():
    empty = run(pool_rows=0, pool_groups={}, settings={}, timings=[], graph={})
    nothing = MapPoints(xy=np.zeros((0, 2)), rows=np.zeros(0, int), groups=[])
    Page(render(empty, [], None))
    Page(render(empty, [target(main=selection("main", []), others=[], rows=0)], nothing))


def test_small_sources_share_a_row_unless_the_target_has_them():
    pool = {f"s{i}": 10 + i for i in range(60)}
    page = render(run(pool_groups=pool), [target(groups={"s0": 5})], None)
    text = Page(page).text
    assert "smaller sources" in text
    assert re.search(r"s0\s+in target", text)
    assert page.count('<th scope="row" class="name">') < 30


def test_large_selections_are_thinned():
    page = render(run(), [target(count=20_000)], some_points(5_000))
    assert len(page) < 2_000_000
    assert "The chart shows a sample of the 20,000 picks" in page
    assert page.count('class="step ') < 2_000


def test_targets_have_a_section_each_and_a_table_of_contents():
    parsed = Page(render(run(), [target("math"), target("law"), target("code")], some_points()))
    links = [value for tag, name, value in parsed.attributes if (tag, name) == ("a", "href")]
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    inside = [link for link in links if link.startswith("#")]
    assert inside == ["#target-1", "#target-2", "#target-3", "#run"]
    assert len(ids) == len(set(ids)) and {"target-1", "target-3", "run"} <= set(ids)
    assert Page(render(run(), [target()], None)).elements["nav"] == 0


def test_comparisons_are_linked():
    parsed = Page(render(run(comparisons=[5_177, 20_000]), [target()], None))
    links = [value for tag, name, value in parsed.attributes if (tag, name) == ("a", "href")]
    assert "comparisons/5177/comparison.html" in links
    assert "under 5,177 supervised tokens , under 20,000 supervised tokens ." in parsed.text


def test_clean_cuts_and_replaces():
    assert clean("a\r\nb\tc") == "a\nb\tc"
    assert clean("x\u202ey\x07\ud800") == "x\ufffdy\ufffd\ufffd"
    assert clean("abcdef", 3) == "abc…"
    assert clean("x" * 1_234, 200).endswith("… [1,234 characters]")


def test_duration():
    shown = [duration(seconds) for seconds in (0.04, 59.96, 61, 7_260)]
    assert shown == ["0.0 s", "60.0 s", "1 min 01 s", "2 h 01 min"]


def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(names)} is installed")
    return found


def dumped(page: str, folder: Path) -> str:
    """The page's DOM after a real browser has opened it and run what it would run."""
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --dump-dom"
    )
    command = [chromium(), *flags.split(), f"--user-data-dir={folder / 'profile'}", path.as_uri()]
    return subprocess.run(command, capture_output=True, timeout=180, check=True).stdout.decode()


@pytest.mark.browser
def test_browser_shows_headings_and_charts(tmp_path):
    dom = dumped(render(run(), [target()], some_points()), tmp_path)
    for heading in ("Evaluation", "Map of the selection", "Sources before and after", "Time"):
        assert f"<h3>{heading}</h3>" in dom
    assert dom.count("<svg") > 10
    assert 'class="ring c0"' in dom


@pytest.mark.browser
def test_the_browser_runs_no_script(tmp_path):
    page = hostile_page()
    title = re.search("<title>.*?</title>", page).group()
    act = "document.title='owned'"
    injected = f'<script>{act}</script><img src=x onerror="{act}">'
    dom = dumped(page.replace("</body>", f"{injected}</body>"), tmp_path)
    shown = re.search("<title>.*?</title>", dom).group()
    assert html.unescape(shown) == html.unescape(title)
    assert dom.count("<script") == dom.count("<img") == 1  # only the ones injected here
