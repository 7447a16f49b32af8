"""Rendering: what the chat template makes of a conversation, and where each text is in it.

A template is a program, so its output does not say which message a character comes from. It is
therefore run twice: on the conversation, and on the conversation with marks around all texts.
Without its marks the second text has to be the first one; then every text is found by position,
whatever the rows say. A text that left no mark was dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

from g2is_ray.chat.conversation import Conversation, Message
from g2is_ray.chat.marks import Event, Marker, found_whole, read_marks, without_repeats
from g2is_ray.chat.shapes import content_text, with_content
from g2is_ray.chat.templates import ChatTemplate
from g2is_ray.errors import InputError

HIDES = (
    "the model's chat template hides where the assistant's message {} is; "
    "use a template that renders each message in one piece"
)


class Rendering:
    """A rendered conversation and its marks.

    Args:
        opaque: messages whose content the template is not shown: it is given a name instead,
            for which the content is put in afterwards.

    Raises:
        InputError: the template rejects the conversation, or what it writes around a text
            depends on the text.
    """

    def __init__(
        self, template: ChatTemplate, conversation: Conversation, *, opaque: Sequence[int] = ()
    ) -> None:
        self.template, self.variables = template, conversation.template
        self.roles = [message["role"] for message in conversation.messages]
        self.supervised = [i for i, one in enumerate(conversation.supervised) if one]
        self.opaque = set(opaque)
        self._ignored: dict[str, bool] = {}
        messages = conversation.messages
        text = template.render(messages, self.variables)
        self.salt = "Mark"
        while self.salt in text or self.salt in str(messages):
            self.salt += "Z"
        self._held = {f"{self.salt}H{i}H": content_text(messages[i]) for i in sorted(opaque)}
        messages = [
            with_content(one, f"{self.salt}H{i}H") if i in self.opaque else one
            for i, one in enumerate(messages)
        ]
        if opaque:
            text = template.render(messages, self.variables)
            for name in self._held:
                if text.count(name) != 1:
                    raise InputError(HIDES.format(opaque[0] + 1))
        self.text = self._filled(text)
        self.messages = messages
        self._mark()
        self._whole = found_whole(self.text, self.events, self.places)
        of_message: dict[int, list[int]] = {}
        for number, event in enumerate(self.events):
            of_message.setdefault(self.places[event.place].message, []).append(number)
        self.of_message = of_message

    def _mark(self) -> None:
        """Find marks that the template's output does not depend on."""
        contents = dict(zip(sorted(self.opaque), self._held.values(), strict=True))
        for names, inner in ((True, False), (False, False), (False, True)):
            marker = Marker(self.salt, self.template.tags, names=names, inner=inner)
            self.marked = [
                marker.message(i, message, whole=contents.get(i))
                for i, message in enumerate(self.messages)
            ]
            self._marked_variables = marker.variables(self.variables)
            try:
                marked = self.template.render(self.marked, self._marked_variables)
            except InputError:
                continue
            text, events = read_marks(self._filled(marked), self.salt)
            self.places = marker.places
            self.events = list(without_repeats(events, self.places))
            if text == self.text:
                return
        turn = self.supervised[0] if self.supervised else 0
        raise InputError(HIDES.format(turn + 1))

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
        lost = self._lost(self.events)
        cut = [i for i in self.supervised if any(i == m for m, key in lost if key == "content")]
        if not cut or not self._as_last(cut[-1]) & {(cut[-1], "content")}:
            return []
        return cut

    def check(self) -> bool:
        """Whether a part of a message is left out or changed.

        Raises:
            InputError: a message is left out entirely, or a key of a supervised turn, or tools.
        """
        traced = {
            (self.places[event.place].message, self.places[event.place].key)
            for event in self.events
        }
        given = {(place.message, place.key) for place in self.places if place.core}
        seen = {message for message, _ in traced}
        for message, key in sorted(given - traced):
            if message < 0:
                raise InputError(
                    f"the model's chat template ignores {key}; remove them, or use a template "
                    "that writes them"
                )
            where = f"message {message + 1} ({self.roles[message]})"
            if message not in seen and key == "content":
                raise InputError(
                    f"the model's chat template leaves out {where}; give it a role that the "
                    "template writes, or use another template"
                )
            if message not in seen or (message in self.supervised and self._ignores(key, message)):
                raise InputError(
                    f"the model's chat template ignores {key} of {where}; remove it, or use a "
                    "template that writes it"
                )
        return any(
            place.core and number not in self._whole for number, place in enumerate(self.places)
        )

    def _ignores(self, key: str, message: int) -> bool:
        """Whether the key of a turn is lost even if the conversation ends with it."""
        if key not in self._ignored:  # it is the same with other turns
            self._ignored[key] = (message, key) in self._as_last(message)
        return self._ignored[key]

    def _as_last(self, message: int) -> set[tuple[int, str]]:
        """What of the message is lost if the conversation ends with it."""
        if message == len(self.messages) - 1:
            return self._lost(self.events)
        try:
            text = self.template.render(self.marked[: message + 1], self._marked_variables)
        except InputError:
            return self._lost(self.events)
        return self._lost(read_marks(text, self.salt)[1])

    def _lost(self, events: Sequence[Event]) -> set[tuple[int, str]]:
        """Message and key of texts that lack one of their marks."""
        marks = {(event.place, event.opens) for event in events}
        return {
            (place.message, place.key)
            for number, place in enumerate(self.places)
            if not {(number, True), (number, False)} <= marks
        }

    def bounds(self, number: int) -> tuple[int, int]:
        """Positions of the marks before and after a mark, or the ends of the text."""
        events = self.events
        before = events[number - 1].position if number else 0
        is_last = number == len(events) - 1
        return before, len(self.text) if is_last else events[number + 1].position

    def first(self, number: int) -> int:
        """Where the texts of a message begin whose first mark is `number`."""
        event = self.events[number]
        place = self.places[event.place]
        part = place.core[: place.depth] if event.opens or place.depth else place.core
        earlier = self.text[self.bounds(number)[0] : event.position]
        length = common_end(earlier, place.before + part)
        own = earlier[len(earlier) - length :]
        if length < len(place.before + part):
            own = own.lstrip()  # blanks may be the header's
        return event.position - len(own)

    def last(self, number: int) -> int:
        """Where the texts of a message end whose last mark is `number`."""
        event = self.events[number]
        place = self.places[event.place]
        own = place.core[place.depth :] if event.opens or place.depth else ""
        own += place.after
        rest = self.text[event.position : self.bounds(number)[1]]
        return event.position + common_start(rest, own)

    def after(self, number: int, marked: Sequence[Message], *, prompt: bool = False) -> str | None:
        """What the template writes after mark `number`; None if another mark comes later."""
        if number < 0:
            return None
        try:
            text = self.template.render(marked, self._marked_variables, prompt=prompt)
        except InputError:
            return None  # a part of a conversation may be what the template rejects
        event = self.events[number]
        mark = f"{self.salt}{event.place}{'b' if event.opens else 'e'}"
        _, found, after = text.rpartition(mark)
        if not found or read_marks(after, self.salt)[1]:
            return None
        return after


def common_start(one: str, other: str) -> int:
    """Number of characters that two texts begin with alike."""
    if one.startswith(other):
        return len(other)
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), len(one))  # noqa: B905


def common_end(one: str, other: str) -> int:
    """Number of characters that two texts end with alike."""
    return common_start(one[::-1], other[::-1])
