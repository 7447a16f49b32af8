"""Marks: put around the texts of a conversation, and found again in what a template writes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from g2is_ray.chat.conversation import Message
from g2is_ray.chat.shapes import content_text, with_content

_EMPTY = re.compile(r"<(\w+)></\1>")
_NAMES = {"role", "type", "id", "tool_call_id", "name"}  # of things, which templates compare
_TEXTS_OF_TOOLS = {"description", "name"}


@dataclass(frozen=True)
class Place:
    """A text between two marks."""

    message: int  # number of its message; -1 for a variable of the template
    key: str  # of the message, or the variable's name
    core: str  # the text, without blanks around it
    before: str  # text of the same message that comes before it, unmarked
    after: str  # and after it
    depth: int  # characters of `core` before the opening mark, and after the closing one


@dataclass(frozen=True)
class Event:
    """A mark that was found."""

    position: int  # in the text without marks
    place: int
    opens: bool


class Marker:
    """Puts marks around texts, and remembers what they are around.

    Args:
        salt: text that marks begin with, in none of the texts.
        tags: where texts are parted, so that each part has marks of its own.
        names: put marks around names of tools as well.
        inner: put both marks into the middle of a text.
    """

    def __init__(self, salt: str, tags: Sequence[str], *, names: bool, inner: bool) -> None:
        self.places: list[Place] = []
        self._salt, self._names, self._inner = salt, names, inner
        self._parts = re.compile(f"({'|'.join(map(re.escape, tags))})") if tags else None

    def message(self, number: int, message: Message, *, whole: str | None = None) -> Message:
        """The message with marks around its texts.

        Args:
            whole: text that the content is a name for, if it is.
        """
        count = len(self.places)
        marked = {}
        for key, value in message.items():
            if key == "content" and whole is not None:
                name = self._around(content_text(message), Place(number, key, whole, "", "", 0))
                marked[key] = with_content(message, name)[key]
            elif key in _NAMES or value is None:
                marked[key] = value
            else:
                marked[key] = self._leaves(value, number, key)
        if len(self.places) == count and self._names and "content" in message:  # is blank
            mark = self._around("", Place(number, "content", "", "", "", 0))
            marked = with_content(marked, content_text(message) + mark)
        return marked

    def variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The template's variables with marks around texts of tools and documents."""
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
            key: self._leaves(one, -1, "tools", named=True)
            if key in _TEXTS_OF_TOOLS and isinstance(one, str) and (self._names or key != "name")
            else self._tools(one)
            for key, one in value.items()
        }

    def _leaves(self, value: Any, number: int, key: str, *, named: bool = False) -> Any:
        if isinstance(value, str):
            return self._text(value, number, key)
        if isinstance(value, list):
            return [self._leaves(one, number, key) for one in value]
        if isinstance(value, dict):
            kept = _NAMES - {"name"} if self._names else _NAMES
            return {
                name: one if name in kept else self._leaves(one, number, key)
                for name, one in value.items()
            }
        return value

    def _text(self, text: str, number: int, key: str) -> str:
        pieces = self._parts.split(text) if self._parts else [text]
        if not any(piece.strip() for piece in pieces[::2]):
            pieces = [text]
        written, before, count = [], "", len(self.places)
        for i, piece in enumerate(pieces):
            core = piece.strip()
            if i % 2 or not core:
                written.append(piece)
                before += piece
                continue
            start = piece.index(core)
            depth = len(core) // 2 if self._inner else 0
            place = Place(number, key, core, before + piece[:start], "", depth)
            marked = self._around(core, place)
            before = piece[start + len(core) :]
            written.append(piece[:start] + marked + before)
        if len(self.places) > count:
            self.places[-1] = dataclasses.replace(self.places[-1], after=before)
        return "".join(written)

    def _around(self, core: str, place: Place) -> str:
        opening, closing = (f"{self._salt}{len(self.places)}{mark}" for mark in "be")
        self.places.append(place)
        if self._inner and place.depth:
            return core[: place.depth] + opening + closing + core[place.depth :]
        return opening + core + closing


def read_marks(marked: str, salt: str) -> tuple[str, list[Event]]:
    """The text without its marks, and the marks in order."""
    pieces, events, end, length = [], [], 0, 0
    for match in re.finditer(rf"{salt}(\d+)([be])", marked):
        pieces.append(marked[end : match.start()])
        length += len(pieces[-1])
        end = match.end()
        events.append(Event(length, int(match[1]), match[2] == "b"))
    pieces.append(marked[end:])
    return "".join(pieces), events


def without_repeats(events: Sequence[Event], places: Sequence[Place]) -> Iterator[Event]:
    """The marks without those that templates repeat: names of tools stand in replies too."""
    seen: set[tuple[int, bool]] = set()
    for event in events:
        mark = event.place, event.opens
        if mark not in seen or places[event.place].key == "content":
            yield event
        seen.add(mark)


def found_whole(text: str, events: Sequence[Event], places: Sequence[Place]) -> set[int]:
    """Numbers of the places whose text stands unchanged, but for blanks, where its marks are.

    Texts other than content may be written in another form (as JSON, for example), so two marks
    are enough for them.
    """
    whole: set[int] = set()
    opened: dict[int, int] = {}
    for event in events:
        if event.opens:
            opened[event.place] = event.position
        elif event.place in opened:
            place = places[event.place]
            start = opened[event.place] - place.depth
            end = start + len(place.core) if place.depth else event.position
            found = text[start:end]
            if place.key != "content" or (
                _alike(found, place.core) and _has_tags(text, start, end, place)
            ):
                whole.add(event.place)
    return whole


def _has_tags(text: str, start: int, end: int, place: Place) -> bool:
    """Whether the tags around a text stand there too, but for those around empty reasoning."""
    before, after = "".join(place.before.split()), "".join(place.after.split())
    if _EMPTY.fullmatch(before):
        before = ""
    near = len(place.before) + len(place.after) + 64  # a template may write other blanks
    left, right = text[max(0, start - near) : start], text[end : end + near]
    return "".join(left.split()).endswith(before) and "".join(right.split()).startswith(after)


def _alike(found: str, core: str) -> bool:
    if found == core or found == json.dumps(core, ensure_ascii=False)[1:-1]:
        return True
    return "".join(found.split()) == "".join(core.split())
