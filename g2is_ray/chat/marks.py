"""Marks: strings put around the texts of a conversation, and found again in a template's output."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from g2is_ray.chat.conversation import Message
from g2is_ray.chat.shapes import content_text, with_content

_EMPTY_TAG = re.compile(r"<(\w+)></\1>")
_UNMARKED_KEYS = {"role", "type", "id", "tool_call_id", "name"}  # templates compare their values
_MARKED_TOOL_KEYS = {"description", "name"}


@dataclass(frozen=True)
class MarkedText:
    """A text between two marks."""

    message: int  # index of its message; -1 for a variable of the template
    key: str  # key in the message, or the variable's name
    core: str  # the text without surrounding blanks
    before: str  # unmarked text of the same message that precedes it
    after: str  # unmarked text of the same message that follows it
    depth: int  # characters of `core` before its marks; 0 if the marks surround it


@dataclass(frozen=True)
class Mark:
    """A mark found in a template's output."""

    position: int  # in the text without marks
    index: int  # of its `MarkedText`
    opens: bool


class Marker:
    """Puts marks around texts and records the marked texts.

    Args:
        salt: string that every mark begins with; none of the texts contains it.
        tags: strings at which texts are split, so that each part gets its own marks.
        names: also mark names of tools.
        inner: put both marks into the middle of a text.
    """

    def __init__(self, salt: str, tags: Sequence[str], *, names: bool, inner: bool) -> None:
        self.texts: list[MarkedText] = []
        self._salt, self._names, self._inner = salt, names, inner
        self._splitter = re.compile(f"({'|'.join(map(re.escape, tags))})") if tags else None

    def message(self, number: int, message: Message, *, replaced: str | None = None) -> Message:
        """The message with marks around its texts.

        Args:
            replaced: the original content, if the message's content is a placeholder for it.
        """
        count = len(self.texts)
        marked = {}
        for key, value in message.items():
            if key == "content" and replaced is not None:
                text = MarkedText(number, key, replaced, "", "", 0)
                marked[key] = with_content(message, self._around(content_text(message), text))[key]
            elif key in _UNMARKED_KEYS or value is None:
                marked[key] = value
            else:
                marked[key] = self._leaves(value, number, key)
        if len(self.texts) == count and self._names and "content" in message:  # blank content
            mark = self._around("", MarkedText(number, "content", "", "", "", 0))
            marked = with_content(marked, content_text(message) + mark)
        return marked

    def variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The template's variables with marks around the texts of tools and documents."""
        marked = dict(variables)
        if tools := marked.get("tools"):
            marked["tools"] = self._tools(tools)
        if documents := marked.get("documents"):
            marked["documents"] = self._leaves(documents, -1, "documents")
        return marked

    def _tools(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._tools(one) for one in value]
        if not isinstance(value, dict):
            return value
        return {
            key: self._text(one, -1, "tools")
            if key in _MARKED_TOOL_KEYS and isinstance(one, str) and (self._names or key != "name")
            else self._tools(one)
            for key, one in value.items()
        }

    def _leaves(self, value: Any, number: int, key: str) -> Any:
        """`value` with marks around all of its strings, except for those that are identifiers."""
        if isinstance(value, str):
            return self._text(value, number, key)
        if isinstance(value, list):
            return [self._leaves(one, number, key) for one in value]
        if isinstance(value, dict):
            kept = _UNMARKED_KEYS - {"name"} if self._names else _UNMARKED_KEYS
            return {
                name: one if name in kept else self._leaves(one, number, key)
                for name, one in value.items()
            }
        return value

    def _text(self, text: str, number: int, key: str) -> str:
        """The text with marks around each of its parts between tags."""
        pieces = self._splitter.split(text) if self._splitter else [text]
        if not any(piece.strip() for piece in pieces[::2]):
            pieces = [text]
        written, before, count = [], "", len(self.texts)
        for i, piece in enumerate(pieces):
            core = piece.strip()
            if i % 2 or not core:
                written.append(piece)
                before += piece
                continue
            start = piece.index(core)
            depth = len(core) // 2 if self._inner else 0
            marked = self._around(
                core, MarkedText(number, key, core, before + piece[:start], "", depth)
            )
            before = piece[start + len(core) :]
            written.append(piece[:start] + marked + before)
        if len(self.texts) > count:
            self.texts[-1] = dataclasses.replace(self.texts[-1], after=before)
        return "".join(written)

    def _around(self, core: str, text: MarkedText) -> str:
        opening, closing = (f"{self._salt}{len(self.texts)}{mark}" for mark in "be")
        self.texts.append(text)
        if self._inner and text.depth:
            return core[: text.depth] + opening + closing + core[text.depth :]
        return opening + core + closing


def read_marks(marked: str, salt: str) -> tuple[str, list[Mark]]:
    """The text without its marks, and the marks in order."""
    pieces, marks, end, length = [], [], 0, 0
    for match in re.finditer(rf"{salt}(\d+)([be])", marked):
        pieces.append(marked[end : match.start()])
        length += len(pieces[-1])
        end = match.end()
        marks.append(Mark(length, int(match[1]), match[2] == "b"))
    pieces.append(marked[end:])
    return "".join(pieces), marks


def without_repeats(marks: Sequence[Mark], texts: Sequence[MarkedText]) -> Iterator[Mark]:
    """The marks without those that a template repeats, such as a tool's name in its reply."""
    seen: set[tuple[int, bool]] = set()
    for mark in marks:
        if (mark.index, mark.opens) not in seen or texts[mark.index].key == "content":
            yield mark
        seen.add((mark.index, mark.opens))


def unchanged(output: str, marks: Sequence[Mark], texts: Sequence[MarkedText]) -> set[int]:
    """Indices of the texts that stand in `output` unchanged, except for blanks.

    Texts other than content may be rewritten (as JSON, for example), so both marks are enough for
    them.
    """
    found: set[int] = set()
    opened: dict[int, int] = {}
    for mark in marks:
        if mark.opens:
            opened[mark.index] = mark.position
        elif mark.index in opened:
            text = texts[mark.index]
            start = opened[mark.index] - text.depth
            end = start + len(text.core) if text.depth else mark.position
            if text.key != "content" or (
                _same_text(output[start:end], text.core) and _has_tags(output, start, end, text)
            ):
                found.add(mark.index)
    return found


def _has_tags(output: str, start: int, end: int, text: MarkedText) -> bool:
    """Whether the tags around a text stand in `output` too; tags around nothing may be missing."""
    before, after = "".join(text.before.split()), "".join(text.after.split())
    if _EMPTY_TAG.fullmatch(before):
        before = ""
    near = len(text.before) + len(text.after) + 64  # a template may write other blanks
    left, right = output[max(0, start - near) : start], output[end : end + near]
    return "".join(left.split()).endswith(before) and "".join(right.split()).startswith(after)


def _same_text(found: str, core: str) -> bool:
    if found == core or found == json.dumps(core, ensure_ascii=False)[1:-1]:
        return True
    return "".join(found.split()) == "".join(core.split())
