"""Turns: where each message is in the text that the chat template makes of a conversation.

A template is a program, so its output does not say which message a character comes from. It is
therefore run twice: on the conversation, and on the conversation with marks around all texts.
Without its marks the second text has to be the first one; then every text is found by position,
whatever the rows say. A text that left no mark was dropped.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from g2is_ray.conversation import Conversation, Message
from g2is_ray.errors import InputError
from g2is_ray.marks import Event, Marker, found_whole, read_marks, without_repeats
from g2is_ray.shapes import SHAPES, content_parts, content_text, with_content
from g2is_ray.templates import ChatTemplate, Span, TemplateError

_HIDES = (
    "the model's chat template hides where the assistant's message {} is; "
    "use a template that renders each message in one piece"
)
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and what is supervised of it."""

    text: str
    spans: list[Span]  # of the supervised turns, in order of the text
    altered: bool  # a part of some message is left out or changed
    messages: list[Message]  # in the shape that the template takes


def lay_out(template: ChatTemplate, conversation: Conversation) -> Rendered:
    """Render the conversation and find its supervised turns; renders a constant number of times.

    A turn's span begins where the generation prompt ends and includes what closes the turn.

    Raises:
        InputError: the template rejects the conversation, leaves out a message or what a
            supervised turn is to teach, or hides where a turn is.
    """
    given = conversation.messages
    if template.takes_parts:
        given = content_parts(given)
    refusal: InputError | None = None
    for shape in SHAPES:
        messages = shape(given)
        if messages is None:
            continue
        try:
            return _lay_out(template, dataclasses.replace(conversation, messages=messages))
        except InputError as error:
            if refusal is None or isinstance(refusal, TemplateError):
                refusal = error
    assert refusal is not None
    raise refusal


def _lay_out(template: ChatTemplate, conversation: Conversation) -> Rendered:
    turns = _Turns(template, conversation)
    if cut := turns.cut():
        turns = _Turns(template, conversation, opaque=cut)
    altered = turns.check()
    spans = list(turns.spans())
    return Rendered(turns.text, spans, altered, conversation.messages)


class _Turns:
    """A rendered conversation and its marks.

    Args:
        opaque: messages whose content the template is not shown: it is given a name instead,
            for which the content is put in afterwards.
    """

    def __init__(
        self, template: ChatTemplate, conversation: Conversation, *, opaque: Sequence[int] = ()
    ) -> None:
        self._template, self._variables = template, conversation.template
        self._roles = [message["role"] for message in conversation.messages]
        self._supervised = [i for i, one in enumerate(conversation.supervised) if one]
        self._opaque = set(opaque)
        self._tokens = [*template.special_tokens, *template.tags]
        self._ignored: dict[str, bool] = {}
        self._leads: dict[tuple[str, str, str], int] = {}
        self._closings: dict[str, int] = {}
        self._tails: dict[tuple[int, bool], str | None] = {}
        messages = conversation.messages
        text = template.render(messages, self._variables)
        self._salt = "Mark"
        while self._salt in text or self._salt in str(messages):
            self._salt += "Z"
        self._held = {f"{self._salt}H{i}H": content_text(messages[i]) for i in sorted(opaque)}
        messages = [
            with_content(one, f"{self._salt}H{i}H") if i in self._opaque else one
            for i, one in enumerate(messages)
        ]
        if opaque:
            text = template.render(messages, self._variables)
            for name in self._held:
                if text.count(name) != 1:
                    raise InputError(_HIDES.format(opaque[0] + 1))
        self.text = self._filled(text)
        self._real = messages
        self._mark()
        self._whole = found_whole(self.text, self._events, self._places)
        of_message: dict[int, list[int]] = {}
        for number, event in enumerate(self._events):
            of_message.setdefault(self._places[event.place].message, []).append(number)
        self._of_message = of_message

    def _mark(self) -> None:
        """Find marks that the template's output does not depend on."""
        contents = dict(zip(sorted(self._opaque), self._held.values(), strict=True))
        for names, inner in ((True, False), (False, False), (False, True)):
            marker = Marker(self._salt, self._template.tags, names=names, inner=inner)
            self._marked = [
                marker.message(i, message, whole=contents.get(i))
                for i, message in enumerate(self._real)
            ]
            self._marked_variables = marker.variables(self._variables)
            try:
                marked = self._template.render(self._marked, self._marked_variables)
            except InputError:
                continue
            text, events = read_marks(self._filled(marked), self._salt)
            self._places = marker.places
            self._events = list(without_repeats(events, self._places))
            if text == self.text:
                return
        turn = self._supervised[0] if self._supervised else 0
        raise InputError(_HIDES.format(turn + 1))

    def _filled(self, text: str) -> str:
        for name, content in self._held.items():
            text = text.replace(name, content)
        return text

    # What is lost

    def cut(self) -> list[int]:
        """Supervised turns whose content the template cuts even if they are the last one.

        Templates drop the reasoning of earlier turns, which is what the model sees of them when
        it is used. One that drops it from the last turn cannot write what that turn is to teach.
        """
        lost = self._lost(self._events)
        cut = [i for i in self._supervised if any(i == m for m, key in lost if key == "content")]
        if not cut or not self._as_last(cut[-1]) & {(cut[-1], "content")}:
            return []
        return cut

    def check(self) -> bool:
        """Whether a part of a message is left out or changed.

        Raises:
            InputError: a message is left out entirely, or a key of a supervised turn, or tools.
        """
        traced = {
            (self._places[event.place].message, self._places[event.place].key)
            for event in self._events
        }
        given = {(place.message, place.key) for place in self._places if place.core}
        seen = {message for message, _ in traced}
        for message, key in sorted(given - traced):
            if message < 0:
                raise InputError(
                    f"the model's chat template ignores {key}; remove them, or use a template "
                    "that writes them"
                )
            where = f"message {message + 1} ({self._roles[message]})"
            if message not in seen and key == "content":
                raise InputError(
                    f"the model's chat template leaves out {where}; give it a role that the "
                    "template writes, or use another template"
                )
            if message not in seen or (message in self._supervised and self._ignores(key, message)):
                raise InputError(
                    f"the model's chat template ignores {key} of {where}; remove it, or use a "
                    "template that writes it"
                )
        return len(self._whole) < sum(place.core != "" for place in self._places)

    def _ignores(self, key: str, message: int) -> bool:
        """Whether the key of a turn is lost even if the conversation ends with it."""
        if key not in self._ignored:  # it is the same with other turns
            self._ignored[key] = (message, key) in self._as_last(message)
        return self._ignored[key]

    def _as_last(self, message: int) -> set[tuple[int, str]]:
        """What of the message is lost if the conversation ends with it."""
        if message == len(self._real) - 1:
            return self._lost(self._events)
        try:
            text = self._template.render(self._marked[: message + 1], self._marked_variables)
        except InputError:
            return self._lost(self._events)
        return self._lost(read_marks(text, self._salt)[1])

    def _lost(self, events: Sequence[Event]) -> set[tuple[int, str]]:
        """Message and key of texts that lack one of their marks."""
        marks = {(event.place, event.opens) for event in events}
        return {
            (place.message, place.key)
            for number, place in enumerate(self._places)
            if not {(number, True), (number, False)} <= marks
        }

    # Where turns are

    def spans(self) -> Iterator[Span]:
        """What is supervised, in order of the text; extends the text if its last turn is open."""
        blocks = []
        if not self._opaque:
            blocks = self._template.generated(self._real, self._variables)
        for turn in sorted(self._supervised, key=lambda i: self._of_message.get(i, [-1])[0]):
            numbers = self._of_message.get(turn, [])
            if not numbers or numbers[-1] - numbers[0] != len(numbers) - 1:
                raise InputError(_HIDES.format(turn + 1))
            first, last = self._first(numbers[0]), self._last(numbers[-1])
            start = bisect.bisect_left(blocks, first, key=lambda block: block[1])
            end = bisect.bisect_right(blocks, last, key=lambda block: block[0])
            if start < end:
                yield from blocks[start:end]
            else:
                yield self._start(turn, numbers[0]), self._end(turn, numbers[-1])

    def _bounds(self, number: int) -> tuple[int, int]:
        """Positions of the marks before and after a mark, or the ends of the text."""
        events = self._events
        before = events[number - 1].position if number else 0
        is_last = number == len(events) - 1
        return before, len(self.text) if is_last else events[number + 1].position

    def _first(self, number: int) -> int:
        """Where the texts of a message begin whose first mark is `number`."""
        event = self._events[number]
        place = self._places[event.place]
        part = place.core[: place.depth] if event.opens or place.depth else place.core
        earlier = self.text[self._bounds(number)[0] : event.position]
        length = _common_end(earlier, place.before + part)
        own = earlier[len(earlier) - length :]
        if length < len(place.before + part):
            own = own.lstrip()  # blanks may be the header's
        return event.position - len(own)

    def _last(self, number: int) -> int:
        """Where the texts of a message end whose last mark is `number`."""
        event = self._events[number]
        place = self._places[event.place]
        own = place.core[place.depth :] if event.opens or place.depth else ""
        own += place.after
        rest = self.text[event.position : self._bounds(number)[1]]
        return event.position + _common_start(rest, own)

    def _start(self, turn: int, number: int) -> int:
        """Where the turn begins: after the generation prompt, if the text has that there."""
        before, first = self._bounds(number)[0], self._first(number)
        own = self.text[first : self._events[number].position]
        earlier = self._roles[turn - 1] if turn else ""
        key = (_DIGITS.sub("0", self.text[before:first]), own[:32], earlier)
        if key not in self._leads:
            self._leads[key] = first - self._find_start(turn, number, before, first)
        return first - self._leads[key]

    def _find_start(self, turn: int, number: int, before: int, first: int) -> int:
        gap = self.text[before : self._events[number].position]
        prompt = self._prompt(turn)
        if prompt is not None and gap.startswith(prompt):
            start = before + len(prompt)
            # A template that ignores the wish for a prompt leaves the header out.
            if not self.text[start:first].strip() or prompt != self._prompt(turn, asked=False):
                return start
        end = first
        if self._places[self._events[number].place].key != "content":
            plain = with_content(self._marked[turn], self._salt)
            plain = {"role": plain["role"], "content": plain["content"]}
            header = self._after(number - 1, [*self._marked[:turn], plain])
            header = None if header is None else header.partition(self._salt)[0]
            end = before + len(header) if header and gap.startswith(header) else first
        if prompt is not None and prompt != self._prompt(turn, asked=False):
            # The prompt may begin with what the template writes in another way here: reasoning.
            start = before + self._whole_tags(gap, _common_start(gap, prompt))
            if start <= end and not self._without_tags(self.text[start:end]).strip():
                return start
        return end

    def _whole_tags(self, text: str, end: int) -> int:
        """The end, or the start of the tag that it falls into."""
        tags = _tokens_in(text, self._tokens)
        return next((tag.start() for tag in tags if tag.start() < end < tag.end()), end)

    def _without_tags(self, text: str) -> str:
        for tag in reversed(_tokens_in(text, self._tokens)):
            text = text[: tag.start()] + text[tag.end() :]
        return text

    def _prompt(self, turn: int, *, asked: bool = True) -> str | None:
        """What follows the last text before the turn, with or without a generation prompt."""
        if (turn, asked) not in self._tails:
            number = self._of_message[turn][0] - 1
            self._tails[turn, asked] = self._after(number, self._marked[:turn], prompt=asked)
        return self._tails[turn, asked]

    def _end(self, turn: int, number: int) -> int:
        """Where the turn ends: after what closes it, without the line break after that."""
        last, limit = self._last(number), self._bounds(number)[1]
        following = self.text[last:limit]
        if turn < len(self._real) - 1:
            key = _DIGITS.sub("0", following)
            if key not in self._closings:
                closing = self._closing(turn, number, last, following)
                if not self._ends(closing):
                    closing += self._end_token(following[len(closing) :])
                self._closings[key] = len(closing)
            return last + self._closings[key]
        closing = self._last_closing(turn, number, last, following)
        if not self._ends(closing) and (added := self._added(turn, number, last, closing)):
            closing += added
            self.text = self.text[:last] + closing
        return last + len(closing)

    def _ends(self, closing: str) -> bool:
        return any(token in closing for token in self._template.end_tokens)

    def _closing(self, turn: int, number: int, last: int, following: str) -> str:
        """What closes an earlier turn: what would if the conversation ended there, if it fits."""
        asked, final = self._closings_at_end(turn, number, last)
        fits = [c.rstrip() for c in (asked, final) if c and following.startswith(c.rstrip())]
        if closing := max(fits, key=len, default=""):
            return closing
        return self._shared(final, following, number) if final else ""

    def _last_closing(self, turn: int, number: int, last: int, following: str) -> str:
        """What closes the conversation's last turn: all that is left of the text."""
        prompt = self._prompt(turn) or ""
        ends_alike = following[len(following) - _common_end(following, prompt) :].strip()
        if ends_alike and prompt == self._prompt(turn, asked=False):
            # Either a header is never added, or always, whether it is asked for or not.
            asked = self._continued(turn, number, last)
            if asked is not None and not asked.startswith(following.rstrip()):
                return self._shared(following, asked, number)
        return following.rstrip()

    def _added(self, turn: int, number: int, last: int, closing: str) -> str:
        """What ends the last turn once the conversation goes on, where nothing does yet."""
        asked, _ = self._closings_at_end(turn, number, last)
        more = (_without_start(asked, closing) or "").rstrip()
        continued = _without_start(self._continued(turn, number, last), closing)
        if more and (continued is None or continued.startswith(more)):
            return more
        return self._end_token(continued or "")

    def _closings_at_end(self, turn: int, number: int, last: int) -> tuple[str | None, str | None]:
        """What follows the turn if the conversation ends with it: asked to go on, and not.

        A generation prompt is left out of the first.
        """
        own = self.text[self._events[number].position : last]
        marked = self._marked[: turn + 1]
        final = _without_start(self._after(number, marked), own)
        asked = _without_start(self._after(number, marked, prompt=True), own)
        prompt, plain = self._prompt(turn), self._prompt(turn, asked=False)
        header = None if prompt is None else _without_start(prompt, plain or "")
        if asked is None or not header or not asked.endswith(header):
            return None, final
        return asked[: len(asked) - len(header)], final

    def _continued(self, turn: int, number: int, last: int) -> str | None:
        """What stands between the turn and the text of a message after it."""
        role = "tool" if self._real[turn].get("tool_calls") else "user"
        content = with_content(self._real[turn], self._salt)["content"]
        after = self._after(number, [*self._marked[: turn + 1], {"role": role, "content": content}])
        own = self.text[self._events[number].position : last]
        return None if after is None else _without_start(after.partition(self._salt)[0], own)

    def _shared(self, one: str, other: str, number: int) -> str:
        """What two texts after a turn have in common, less the beginning of a header."""
        common = one[: _common_start(one, other)]
        tokens = _tokens_in(common, self._tokens)
        start = self._of_message[self._places[self._events[number].place].message][0]
        header = self.text[self._bounds(start)[0] : self._first(start)]
        if len(tokens) > 1 and tokens[-1].group() in header:
            tokens.pop()
        return common[: tokens[-1].end()] if tokens else ""

    def _end_token(self, following: str) -> str:
        """The token at which generation stops, if the text begins with one."""
        blanks = len(following) - len(following.lstrip())
        for token in self._template.end_tokens:
            if following.startswith(token, blanks):
                return following[: blanks + len(token)]
        return ""

    def _after(self, number: int, marked: Sequence[Message], *, prompt: bool = False) -> str | None:
        """What the template writes after mark `number`; None if another mark comes later."""
        if number < 0:
            return None
        try:
            text = self._template.render(marked, self._marked_variables, prompt=prompt)
        except InputError:
            return None  # a part of a conversation may be what the template rejects
        event = self._events[number]
        mark = f"{self._salt}{event.place}{'b' if event.opens else 'e'}"
        _, found, after = text.rpartition(mark)
        if not found or read_marks(after, self._salt)[1]:
            return None
        return after


def _common_start(one: str, other: str) -> int:
    """Number of characters that two texts begin with alike."""
    if one.startswith(other):
        return len(other)
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), len(one))  # noqa: B905


def _common_end(one: str, other: str) -> int:
    """Number of characters that two texts end with alike."""
    return _common_start(one[::-1], other[::-1])


def _without_start(text: str | None, start: str) -> str | None:
    """The text without its start; None if it starts otherwise."""
    return text[len(start) :] if text is not None and text.startswith(start) else None


def _tokens_in(text: str, tokens: Sequence[str]) -> list[re.Match[str]]:
    pattern = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    return list(re.finditer(pattern, text)) if pattern else []
