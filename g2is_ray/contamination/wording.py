"""The wording of a text: a normal form that survives copying, scraping and retyping.

Two texts have the same wording if they differ only in case, white space, punctuation, Unicode
compatibility forms (NFKC), invisible characters, HTML entities and tags, marks of chat templates,
or in a label around the text, such as `Question:` before it or `Answer:` after it.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

_TAG = re.compile(
    r"(?:<\|(?:im_start|start_header_id)\|>|<start_of_turn>)\s*\w+"
    r"|<\|[^|<>]{1,40}\|>|\[/?INST\]|</?(?:s|p|br|b|i|u|em|strong|code|pre|span|div|ul|ol|li|a|h[1-6]"
    r"|table|thead|tbody|tr|th|td|blockquote|(?:start|end)_of_turn|<SYS>)(?:\s[^<>]{0,200})?/?>",
    re.IGNORECASE,
)
"""HTML tags that format text, and chat template markers such as <|im_end|> and [/INST]."""
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_APOSTROPHE = re.compile("(?<=\\w)['\u2018\u2019\u02bc](?=\\w)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
"""Chinese and Japanese characters, each of which counts as a word."""
_LABEL = re.compile(
    r"(?:[\W_]*(?:question|problem|instruction|prompt|input|user|human|assistant|answer|response"
    r"|output|q|a)\s*:)+"
)
_CUE = re.compile(r"(?:\b(?:answer|response|output|assistant|solution|a)\s*:[\W_]*)+\Z")
_CUE_CHARACTERS = 60  # at the end of a text, searched for a cue such as `Answer:`
_WORD = re.compile(r"[^\W_]+|(?<=\d)[-+*/^=<>.](?=\s*\d)|(?<=\d\s)[-+*/^=<>](?=\s*\d)")
"""Letters and digits, and signs between two digits, so that 5 - 3 and 5 + 3 differ."""
_BRACKETS = re.compile(r"[()\[\]{}<>](?:\s[()\[\]{}<>]){2}")
_WORD_OR_BRACKET = re.compile(rf"{_WORD.pattern}|[()\[\]{{}}<>]")
"""Words and brackets, for texts with three spaced brackets in a row, which are about brackets."""
_JOINT = re.compile(r"(?<!\d) | (?!\d)")


def words(text: str) -> list[str]:
    """The words of a text, in order.

    >>> words("<b>Question:</b> It\u2019s  5 - 3 &amp; MORE, isn't it?")
    ['its', '5', '-', '3', 'more', 'isnt', 'it']
    """
    if "&" in text:
        text = html.unescape(text)
    if "<" in text or "[" in text:
        text = _TAG.sub(" ", text)
    if text.isascii():
        text = text.lower()
    else:
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
        text = _UNSPACED.sub(r" \g<0> ", text)
    if "'" in text or not text.isascii():
        text = _APOSTROPHE.sub("", text)
    if "," in text:
        text = _THOUSANDS.sub("", text)
    if label := _LABEL.match(text):
        text = text[label.end() :]
    if ":" in text[-_CUE_CHARACTERS:]:
        text = text[:-_CUE_CHARACTERS] + _CUE.sub("", text[-_CUE_CHARACTERS:])
    word = _WORD_OR_BRACKET if _BRACKETS.search(text) else _WORD
    return word.findall(text) or text.split()


def wording(words: Sequence[str]) -> str:
    """The words as one string that does not depend on how the words are split.

    >>> wording(["roll", "ups", "cost", "5"]) == wording(["rollups", "cost", "5"])
    True
    >>> wording(["1", "23"]) == wording(["12", "3"])
    False
    """
    return _JOINT.sub("", " ".join(words))
