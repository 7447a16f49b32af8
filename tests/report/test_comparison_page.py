"""The page of a comparison shows the given numbers, escapes texts, and renders odd cases."""

import dataclasses
import math

import pytest
from report_views import HOSTILE, Page

from g2is_ray.comparison.comparison import Comparison, Cost, MethodRow, TargetComparison
from g2is_ray.comparison.significance import Interval
from g2is_ray.report.comparison_page import render_comparison

MEANS = {"walk": 1.1234, "less": 1.1301, "tfidf": 1.1977, "random": 1.1912}


def interval(mean: float, half: float = 0.0123) -> Interval:
    return Interval(mean=mean, low=mean - half, high=mean + half)


def method(name: str, loss: float, reference: float | None, seeds: int, **changes) -> MethodRow:
    """Return a method with mean loss `loss` over seeds; `reference` is the reference's mean."""
    row = MethodRow(
        name=name,
        settings={"selector": name, "budget_tokens": 5177},
        losses=[loss + 0.004 * (seed - (seeds - 1) / 2) for seed in range(seeds)],
        exact_matches=[0.25] * seeds,
        to_reference=None if reference is None else interval(loss - reference),
        exact_match_to_reference=None if reference is None else interval(0.031),
        rows=87.0,
        train_tokens=10_321.0,
        steps=14,
        row_tokens=[31.0, 118.0, 305.0],
        own_share=7.5,
        sources=6.4,
        cost=Cost(seconds=3_725.0, gpu_seconds=61.0, stored_bytes=32_800_000),
        tune_seconds=95.0,
    )
    return dataclasses.replace(row, **changes)


def target(
    name: str = "math", means: dict[str, float] = MEANS, seeds: int = 3, **changes
) -> TargetComparison:
    reference = means.get("random", math.nan)
    rows = [
        method(one, loss, None if one == "random" else reference, seeds)
        for one, loss in means.items()
    ]
    found = TargetComparison(
        target=name,
        test_rows=200,
        test_tokens=20_123,
        exact_match_rows=40,
        base_loss=1.3145,
        base_exact_match=0.05,
        methods=sorted(rows, key=lambda row: (math.isnan(row.loss), row.loss)),
        differences={a: {b: interval(means[a] - means[b]) for b in means} for a in means},
        overlaps={a: {b: 0.4321 if a < b else 0.1234 for b in means} for a in means},
    )
    return dataclasses.replace(found, **changes)


def comparison(*targets: TargetComparison, seeds: int = 3, **changes) -> Comparison:
    found = Comparison(
        budget_tokens=5_177,
        pool_rows=1_998,
        pool_tokens=103_548,
        seeds=range(seeds),
        reference="random",
        model="SmolLM2-135M-Instruct",
        settings={"tune_epochs": 2, "tune_learning_rate": 0.0005},
        version="0.1.0",
        created="2025-11-24 12:00 UTC",
        machine="two cores",
        targets=targets or [target(seeds=seeds)],
    )
    return dataclasses.replace(found, **changes)


def text_of(found: Comparison) -> str:
    return plain(Page(render_comparison(found)).text)


def plain(text: str) -> str:
    """Return the text with the signs and spaces of a keyboard."""
    return text.translate({0x2212: "-", 0xD7: "x", 0x202F: " "})


def test_overlap_with_test_rows_is_stated_at_the_losses():
    told = "3 of the 200 test rows of math are in the pool: 3 word for word."
    one = target(notes=[told])
    clean = text_of(comparison(one))
    assert f"Overlap: {told} Losses" in clean
    assert "memorization" not in clean
    leaky = [dataclasses.replace(row, like_tests=2.0) for row in one.methods if row.name == "walk"]
    rest = [row for row in one.methods if row.name != "walk"]
    text = text_of(comparison(dataclasses.replace(one, methods=[*leaky, *rest])))
    assert "2 of the 87 rows of walk are like test rows: losses after tuning" in text


def test_the_result_is_a_plain_sentence():
    text = text_of(comparison())
    assert "The method with the lowest mean loss is walk : 1.1234 over 3 seeds" in text
    assert "the untuned model has 1.3145." in text
    reference = (
        "random, the reference, is -0.0678 (95% interval -0.0801 to -0.0555), which excludes"
    )
    assert f"Its difference to {reference} zero." in text
    second = "less, the second best, is -0.0067 (95% interval -0.0190 to +0.0056), which does not"
    assert f"Its difference to {second} exclude zero" in text


def test_a_reference_that_is_best_is_not_compared_with_itself():
    text = text_of(comparison(target(means={"random": 1.1, "walk": 1.2})))
    assert "is random , the reference itself: 1.1000" in text
    assert text.count("Its difference to") == 1


def test_a_tuned_model_that_does_not_improve_is_pointed_out():
    assert "1.3145, which is not worse." in text_of(comparison(target(means={"random": 1.4})))
    assert "not worse" not in text_of(comparison())


def test_a_single_seed_gets_a_warning():
    assert "One seed: the intervals cover the test rows only" in text_of(comparison(seeds=1))
    assert "One seed" not in text_of(comparison())


def test_unequal_training_is_pointed_out():
    methods = [*target().methods]
    methods[0] = dataclasses.replace(methods[0], train_tokens=7_000.0)
    text = text_of(comparison(target(methods=methods)))
    assert "walk on 7,000 supervised tokens, " in text
    assert "trained on different amounts" not in text_of(comparison())


def test_numbers_of_each_method_are_shown():
    text = text_of(comparison())
    assert "5,177 supervised tokens, 5.0% of the pool's" in text
    for shown in ("31 / 118 / 305", "7.5x", "10,321", "1 h 02 min", "1 min 01 s", "32.8 MB"):
        assert text.count(shown) == len(MEANS)
    assert "walk 1.1234 0.0040 -0.0678 -0.0801 to -0.0555 25.0% +3.1 +1.9 to +4.3" in text
    assert "untuned model 1.3145 5.0%" in text
    assert "for 14 optimizer steps" in text and "tune_learning_rate 0.0005" in text


def test_pairs_whose_interval_excludes_zero_are_emphasized():
    page = plain(render_comparison(comparison()))
    walk_less_tfidf = '<td class="better" title="-0.0743 (-0.0866 to -0.0620)">-0.0743</td>'
    assert page.count(walk_less_tfidf) == 1
    assert page.count('<td class="even" title="+0.0067 (-0.0056 to +0.0190)">+0.0067</td>') == 1
    assert page.count('<td class="worse" title=') == page.count('<td class="better" title=') == 4
    assert "about 0.3 of these 6 pairs" in Page(page).text
    assert page.count("43%</td>") == page.count("12%</td>") == 6


def test_charts_show_each_seed_mean_and_interval():
    page = render_comparison(comparison())
    assert page.count('class="seed"') == 3 * len(MEANS)
    assert page.count('class="mean"') == len(MEANS)
    assert page.count('class="whisker better"') == 2
    assert page.count('class="whisker even"') == 1
    assert "<title>seed 2: 1.1274</title>" in page


def test_an_untuned_model_far_away_is_left_off_the_scale():
    assert 'class="base"' not in render_comparison(comparison(target(base_loss=4.0)))
    assert "The untuned model, 4.0000, is off the scale" in text_of(
        comparison(target(base_loss=4.0))
    )
    assert 'class="base"' in render_comparison(comparison())


def test_exact_match_is_left_out_without_answers():
    methods = [
        dataclasses.replace(row, exact_matches=[], exact_match_to_reference=None)
        for row in target().methods
    ]
    silent = target(methods=methods, exact_match_rows=0, base_exact_match=None)
    assert "exact match is" not in text_of(comparison(silent)).lower()


def hostile() -> Comparison:
    means = {HOSTILE: 1.1, HOSTILE + "2": 1.2, "random": 1.3}
    texts = ("model", "version", "created", "machine")
    one = target(HOSTILE, means)
    methods = [dataclasses.replace(row, settings={HOSTILE: [HOSTILE]}) for row in one.methods]
    changes = dict.fromkeys(texts, HOSTILE) | {"reference": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    one = dataclasses.replace(one, methods=methods)
    return comparison(one, one, **changes)


def test_hostile_text_stays_text():
    page = render_comparison(hostile())
    parsed = Page(page)
    assert "<script" not in page.lower()
    assert parsed.elements["img"] == parsed.elements["script"] == parsed.elements["link"] == 0
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert "{{ 7 * 7 }}" in parsed.text
    assert "A" * 3_000 not in page
    page.encode()


def test_page_needs_nothing_from_the_network():
    page = render_comparison(comparison())
    parsed = Page(page)
    assert ("meta", "http-equiv", "Content-Security-Policy") in parsed.attributes
    assert "url(" not in page and "@import" not in page
    assert not [tag for tag, name, _ in parsed.attributes if name in ("src", "href", "srcset")]


@pytest.mark.parametrize(
    ("means", "seeds"),
    [
        ({"random": 1.2}, 1),
        ({"random": 1.2}, 3),
        ({"random": 1.2, "walk": 1.2}, 1),
        ({f"method-with-quite-a-long-name-{i}": 1 + i / 99 for i in range(19)} | {"random": 2}, 2),
        ({"random": 1.2, "walk": math.nan}, 2),
        ({"random": math.nan, "walk": 1.2, "less": 1.3}, 2),
        ({"random": math.nan, "walk": math.nan}, 1),
        ({"random": 0.0, "walk": 1e5}, 2),
    ],
    ids=["one", "one, 3 seeds", "equal", "20", "nan", "nan reference", "all nan", "far apart"],
)
def test_odd_comparisons_render(means, seeds):
    parsed = Page(render_comparison(comparison(target(means=means, seeds=seeds), seeds=seeds)))
    words = parsed.text.lower().split()
    assert "nan" not in words and "none" not in words and "inf" not in words


def test_a_difference_of_zero_does_not_exclude_zero():
    equal = target(means={"random": 1.2, "walk": 1.2}, seeds=1)
    zero = {a: {b: interval(0.0, 0.0) for b in ("random", "walk")} for a in ("random", "walk")}
    text = text_of(comparison(dataclasses.replace(equal, differences=zero), seeds=1))
    assert "is 0.0000 (95% interval 0.0000 to 0.0000), which does not exclude zero" in text


def test_targets_have_a_section_each_and_a_table_of_contents():
    parsed = Page(render_comparison(comparison(target("math"), target("law"))))
    links = [value for tag, name, value in parsed.attributes if (tag, name) == ("a", "href")]
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert links == ["#target-1", "#target-2", "#how"]
    assert len(ids) == len(set(ids)) and set(ids) >= {link[1:] for link in links}
