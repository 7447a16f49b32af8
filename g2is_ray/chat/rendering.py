"""Rendering: a chat template's output for a conversation, and the position of each text in it.

A template is a program, so its output does not say which message a character comes from. The
template therefore runs twice: on the conversation, and on the conversation with marks around all
texts. The second output without its marks must equal the first; the marks' positions then locate
every text, whatever the rows say. A text without marks was dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

from g2is_ray.chat.conversation import Conversation, Message
from g2is_ray.chat.marks import Mark, Marker, read_marks, unchanged, without_repeats
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
        opaque: indices of messages that are rendered with a placeholder as their content; the
            content replaces it afterwards.

    Raises:
        InputError: the template rejects the conversation, or the output around a text depends on
            the text.
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
        self._contents = {f"{self.salt}H{i}H": content_text(messages[i]) for i in sorted(opaque)}
        messages = [
            with_content(one, f"{self.salt}H{i}H") if i in self.opaque else one
            for i, one in enumerate(messages)
        ]
        if opaque:
            text = template.render(messages, self.variables)
            for placeholder in self._contents:
                if text.count(placeholder) != 1:
                    raise InputError(HIDES.format(opaque[0] + 1))
        self.text = self._fill_placeholders(text)
        self.messages = messages
        self._mark()
        self._unchanged = unchanged(self.text, self.marks, self.texts)
        self.marks_of: dict[int, list[int]] = {}
        """Indices of each message's marks, by the message's index."""
        for number, mark in enumerate(self.marks):
            self.marks_of.setdefault(self.texts[mark.index].message, []).append(number)

    def _mark(self) -> None:
        """Find marks that leave the rest of the template's output as it is."""
        contents = dict(zip(sorted(self.opaque), self._contents.values(), strict=True))
        for names, inner in ((True, False), (False, False), (False, True)):
            marker = Marker(self.salt, self.template.tags, names=names, inner=inner)
            self.marked = [
                marker.message(i, message, replaced=contents.get(i))
                for i, message in enumerate(self.messages)
            ]
            self._marked_variables = marker.variables(self.variables)
            try:
                marked = self.template.render(self.marked, self._marked_variables)
            except InputError:
                continue
            text, marks = read_marks(self._fill_placeholders(marked), self.salt)
            self.texts = marker.texts
            self.marks = list(without_repeats(marks, self.texts))
            if text == self.text:
                return
        turn = self.supervised[0] if self.supervised else 0
        raise InputError(HIDES.format(turn + 1))

    def _fill_placeholders(self, text: str) -> str:
        for placeholder, content in self._contents.items():
            text = text.replace(placeholder, content)
        return text

    # Texts that the template drops

    def cut(self) -> list[int]:
        """Supervised turns whose content the template cuts even from the last turn.

        Templates drop the reasoning of earlier turns, as the model does not see it in use
        either. A template that drops it from the last turn cannot render what the turn teaches.
        """
        lost = self._lost(self.marks)
        cut = [i for i in self.supervised if any(i == m for m, key in lost if key == "content")]
        if not cut or not self._lost_as_last(cut[-1]) & {(cut[-1], "content")}:
            return []
        return cut

    def check(self) -> bool:
        """Whether the template drops or changes a part of a message.

        Raises:
            InputError: the template drops a whole message, a key of a supervised turn, or tools.
        """
        traced = {
            (self.texts[mark.index].message, self.texts[mark.index].key) for mark in self.marks
        }
        given = {(text.message, text.key) for text in self.texts if text.core}
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
                    f"the model's chat template drops {where}; give it a role that the "
                    "template writes, or use another template"
                )
            if message not in seen or (message in self.supervised and self._ignores(key, message)):
                raise InputError(
                    f"the model's chat template ignores {key} of {where}; remove it, or use a "
                    "template that writes it"
                )
        return any(
            text.core and index not in self._unchanged for index, text in enumerate(self.texts)
        )

    def _ignores(self, key: str, message: int) -> bool:
        """Whether the template drops the key of a turn even if the turn is the last."""
        if key not in self._ignored:  # one turn tells for all turns
            self._ignored[key] = (message, key) in self._lost_as_last(message)
        return self._ignored[key]

    def _lost_as_last(self, message: int) -> set[tuple[int, str]]:
        """Message and key of the lost texts if the conversation ends with `message`."""
        if message == len(self.messages) - 1:
            return self._lost(self.marks)
        try:
            text = self.template.render(self.marked[: message + 1], self._marked_variables)
        except InputError:
            return self._lost(self.marks)
        return self._lost(read_marks(text, self.salt)[1])

    def _lost(self, marks: Sequence[Mark]) -> set[tuple[int, str]]:
        """Message and key of the texts that lack one of their marks."""
        found = {(mark.index, mark.opens) for mark in marks}
        return {
            (text.message, text.key)
            for index, text in enumerate(self.texts)
            if not {(index, True), (index, False)} <= found
        }

    # Positions

    def bounds(self, number: int) -> tuple[int, int]:
        """Positions of the marks before and after mark `number`, or the ends of the text."""
        before = self.marks[number - 1].position if number else 0
        is_last = number == len(self.marks) - 1
        return before, len(self.text) if is_last else self.marks[number + 1].position

    def text_start(self, number: int) -> int:
        """Start of the texts of a message whose first mark is `number`."""
        mark = self.marks[number]
        text = self.texts[mark.index]
        part = text.core[: text.depth] if mark.opens or text.depth else text.core
        earlier = self.text[self.bounds(number)[0] : mark.position]
        length = common_end(earlier, text.before + part)
        own = earlier[len(earlier) - length :]
        if length < len(text.before + part):
            own = own.lstrip()  # these blanks may belong to the header
        return mark.position - len(own)

    def text_end(self, number: int) -> int:
        """End of the texts of a message whose last mark is `number`."""
        mark = self.marks[number]
        text = self.texts[mark.index]
        own = text.core[text.depth :] if mark.opens or text.depth else ""
        own += text.after
        rest = self.text[mark.position : self.bounds(number)[1]]
        return mark.position + common_start(rest, own)

    def after(self, number: int, marked: Sequence[Message], *, prompt: bool = False) -> str | None:
        """The template's output for `marked` after mark `number`; None if another mark follows.

        Args:
            prompt: ask the template for a generation prompt.
        """
        if number < 0:
            return None
        try:
            text = self.template.render(marked, self._marked_variables, prompt=prompt)
        except InputError:
            return None  # a template may reject a part of a conversation
        mark = self.marks[number]
        _, found, after = text.rpartition(f"{self.salt}{mark.index}{'b' if mark.opens else 'e'}")
        if not found or read_marks(after, self.salt)[1]:
            return None
        return after


def common_start(one: str, other: str) -> int:
    """Length of the longest common prefix of two texts."""
    if one.startswith(other):
        return len(other)
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), len(one))  # noqa: B905


def common_end(one: str, other: str) -> int:
    """Length of the longest common suffix of two texts."""
    return common_start(one[::-1], other[::-1])
