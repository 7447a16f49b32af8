"""Overlap of rows: copies are found however they are wrapped, and nothing else is."""

import random

import pytest

from g2is_ray.contamination.overlap import Index, Match, without_templates

NOUNS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ana", "elo", "idu", "oru")]


def prose(seed: int, count: int) -> str:
    """Words in an order that no other seed gives."""
    return " ".join(random.Random(seed).choices(NOUNS, k=count))


def row(*texts: str) -> list[tuple[str, str]]:
    return [("assistant" if place % 2 else "user", text) for place, text in enumerate(texts)]


TESTS = [row(prose(n, 20 + n), prose(100 + n, 15)) for n in range(8)]
QUESTION, ANSWER = (text for _, text in TESTS[3])


@pytest.fixture(scope="module")
def index() -> Index:
    return Index({"test": TESTS})


def kinds(index: Index, *rows: list[tuple[str, str]]) -> list[tuple[int, str]]:
    return [(match.like, match.kind) for match in index.matches(rows)]


OTHER, REPLY = prose(999, 30), prose(998, 20)
FOUND = {
    "a copy": (row(QUESTION, ANSWER), "row"),
    "in another form": (row(QUESTION.upper(), f"**{ANSWER}**!"), "row"),
    "a later turn": (row(OTHER, REPLY, QUESTION, ANSWER, OTHER, REPLY), "row"),
    "another answer": (row(QUESTION, REPLY), "prompt"),
    "a later turn with another answer": (row(OTHER, REPLY, QUESTION, REPLY), "prompt"),
    "inside of a prompt": (row(f"{OTHER} {QUESTION} {OTHER}", REPLY), "near"),
    "under a system message": ([("system", OTHER), *row(QUESTION, ANSWER)], "row"),
    "in a system message": ([("system", f"{OTHER} {QUESTION}"), *row(OTHER, REPLY)], "near"),
    "in an answer": (row(OTHER, f"{REPLY} {QUESTION}"), "near"),
    "cut a little": (row(QUESTION.rsplit(" ", 3)[0], REPLY), "near"),
    "the answer alone": (row(OTHER, ANSWER), "answer"),
    "the answer inside of another": (row(OTHER, f"Sure! {ANSWER} {REPLY}"), "answer"),
}


@pytest.mark.parametrize(("held", "kind"), FOUND.values(), ids=list(FOUND))
def test_a_test_row_is_found(index, held, kind):
    assert kinds(index, held) == [(3, kind)]


MISSED = {
    "nothing": row(OTHER, REPLY),
    "half of the question": row(" ".join(QUESTION.split()[:11]) + OTHER, REPLY),
    "part of the answer": row(OTHER, " ".join(ANSWER.split()[:13])),
    "the words in another order": row(" ".join(sorted(QUESTION.split())), REPLY),
    "runs across turns": row(QUESTION[:40], REPLY, QUESTION[40:], REPLY, OTHER, REPLY),
}


@pytest.mark.parametrize("held", MISSED.values(), ids=list(MISSED))
def test_no_other_row_is(index, held):
    assert kinds(index, held) == []


def test_short_texts_match_as_a_whole_only():
    index = Index(
        {"test": [row("Is it so?", "yes"), row("Name the capital of France, please.", "Paris")]}
    )
    assert kinds(index, row("is it so", "Yes.")) == [(0, "row")]
    assert kinds(index, row("Is it so?", "no")) == [(0, "prompt")]
    assert kinds(index, row("Tell me: is it so?", "yes")) == []  # yes is everybody's answer
    assert kinds(index, row(OTHER, "Paris")) == []
    assert kinds(index, row(OTHER, REPLY, "Is it so?", "yes")) == [(0, "row")]
    assert kinds(index, row(OTHER, REPLY, "Is it so?", "no")) == []


def test_what_test_rows_are_wrapped_in_does_not_count():
    tests = [row(f"{OTHER} {prose(n, 15)} {REPLY}", "yes") for n in range(5)]
    index = Index({"test": tests})
    assert kinds(index, row(f"{OTHER} {prose(50, 15)} {REPLY}", "yes")) == []
    assert kinds(index, row(f"{prose(60, 30)} {prose(2, 15)} {prose(61, 9)}", "no")) == [
        (2, "near")
    ]


def test_an_answer_to_several_prompts_does_not_count():
    index = Index({"test": [row(prose(n, 20), ANSWER) for n in range(3)]})
    assert kinds(index, row(OTHER, ANSWER)) == []


def test_a_template_that_many_rows_have_most_of_does_not_count():
    index = Index({"test": [row(f"{OTHER} {prose(1, 4)}", "yes")]})
    rows = [row(f"{OTHER} {prose(n, 4)}", "no") for n in range(2, 14)]
    found = index.matches([*rows, row(f"Say: {OTHER} {prose(1, 4)}.", "no")])
    assert len(found) == 13
    assert without_templates(found) == [Match(12, "test", 0, "near")]
    assert without_templates(found[-4:]) == found[-4:]


def test_all_rows_of_one_text_are_named(index):
    again = Index({"test": [*TESTS, *TESTS[:4]]})
    (match,) = again.matches([row(QUESTION, ANSWER)])
    assert again.alike(match) == {3: "row", 11: "row"}
    other = Index({"test": [TESTS[3], row(QUESTION, REPLY)]})
    (match,) = other.matches([row(QUESTION, ANSWER)])
    assert other.alike(match) == {0: "row", 1: "prompt"}


def test_each_set_is_named_but_the_rows_of_it():
    index = Index({"a": TESTS[:4], "b": TESTS[2:]})
    assert [(m.row, m.of, m.like) for m in index.matches(TESTS[:4], besides="a")] == [
        (2, "b", 0),
        (3, "b", 1),
    ]


def test_the_result_does_not_depend_on_what_else_is_read(index):
    rows = [held for held, _ in FOUND.values()] + list(MISSED.values())
    together = index.matches(rows)
    alone = [
        match._replace(row=number)
        for number, held in enumerate(rows)
        for match in index.matches([held])
    ]
    assert together == alone


def test_nothing_may_be_empty(index):
    assert Index({}).matches([row("a", "b")]) == []
    assert Index({"test": []}).matches([[]]) == []
    assert index.matches([]) == index.matches([[], row("", "")]) == []
