"""Wordings: what scrapes and copies do to a text leaves them as they are."""

import html
import string
import unicodedata

import pytest

from g2is_ray.contamination.wording import wording, words

TEXT = (
    "Lorie earns $10 per hour & tips; Karen's roll-ups cost 1,250. "
    '"How much" does Ann earn? Caf\u00e9.'
)
CHANGES = {
    "case": str.upper,
    "white space": lambda text: "\n\t " + text.replace(" ", " \u00a0\n") + "  ",
    "other marks": lambda text: (
        text.replace(".", "!!").replace('"', "\u201c").replace("-", "\u2010")
    ),
    "no marks": lambda text: text.translate(str.maketrans("", "", string.punctuation)),
    "wide letters": lambda text: text.replace("Ann", "\uff21\uff4e\uff4e"),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "entities": html.escape,
    "tags": lambda text: f"<p><b>{text}</b><br/></p>",
    "markdown": lambda text: f"## **{text}**\n\n---",
    "invisible": lambda text: "\ufeff" + text.replace("earn", "ea\u00adr\u200bn"),
    "label": lambda text: f"### Question: {text}\nAnswer:",
    "template": lambda text: f"<|im_start|>user\n{text}<|im_end|>",
    "Llama 2": lambda text: f"[INST] {text} [/INST]",
    "apostrophes": lambda text: text.replace("'", "\u2019"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_copy_has_the_same_wording(change):
    assert change(TEXT) != TEXT
    assert wording(words(change(TEXT))) == wording(words(TEXT))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5 - 3 = ?", "5 + 3 = ?"),
        ("What is 12 and 3?", "What is 1 and 23?"),
        ("12 3", "1 23"),
        ("Is 1.5 more?", "Is 15 more?"),
        ("Close: ( [ {", "Close: ( < ["),
        ("\u4e2d\u56fd\u7684\u9996\u90fd", "\u4e2d\u56fd\u7684\u9996\u76f8"),
        ("a < b", "a < c"),
    ],
)
def test_other_content_has_another_wording(one, other):
    assert wording(words(one)) != wording(words(other))


def test_chinese_is_parted_into_characters():
    assert words("\u4e2d\u56fd\u7684\u9996\u90fd\uff1f") == list("\u4e2d\u56fd\u7684\u9996\u90fd")
    assert words("\u4e2d \u56fd\u7684 \u9996\u90fd") == list("\u4e2d\u56fd\u7684\u9996\u90fd")


@pytest.mark.parametrize("text", ["\U0001f642", "?!", "..."])
def test_a_text_without_letters_is_its_own_wording(text):
    assert words(text) == [text]
