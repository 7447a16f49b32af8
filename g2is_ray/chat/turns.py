"""Turns: the supervised spans of a rendered conversation."""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from g2is_ray.chat.conversation import Conversation, Message
from g2is_ray.chat.rendering import HIDES, Rendering, common_end, common_start
from g2is_ray.chat.shapes import SHAPES, content_parts, with_content
from g2is_ray.chat.templates import ChatTemplate, Span, TemplateError
from g2is_ray.errors import InputError

_DIGITS = re.compile(r"\d+")
_KEY_CHARACTERS = 32  # of a turn's text: the header may depend on how the text begins


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and its supervised spans."""

    text: str
    spans: list[Span]  # the supervised turns, in order of the text
    altered: bool  # the template drops or changes a part of some message
    messages: list[Message]  # in the shape that the template takes


def render_turns(template: ChatTemplate, conversation: Conversation) -> Rendered:
    """Render the conversation and find its supervised turns, in a bounded number of renderings.

    A turn's span begins where the generation prompt ends and includes the tokens that close the
    turn.

    Raises:
        InputError: the template rejects the conversation, drops a message or a part of a
            supervised turn, or hides where a turn is.
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
            return _render_turns(template, dataclasses.replace(conversation, messages=messages))
        except InputError as error:
            if refusal is None or isinstance(refusal, TemplateError):
                refusal = error
    assert refusal is not None
    raise refusal


def _render_turns(template: ChatTemplate, conversation: Conversation) -> Rendered:
    chat = Rendering(template, conversation)
    if cut := chat.cut():
        chat = Rendering(template, conversation, opaque=cut)
    altered = chat.check() or bool(cut)
    turns = _Turns(chat)
    spans = list(turns.spans())
    return Rendered(turns.text, spans, altered, conversation.messages)


class _Turns:
    """Finds the supervised turns of a rendered conversation.

    A turn begins where the generation prompt ends. It ends after its closing, which is the
    template's output after the turn if the conversation stops there. Results are cached by the
    text between two turns, so that the number of renderings does not grow with the turns.
    """

    def __init__(self, chat: Rendering) -> None:
        self._chat, self._template = chat, chat.template
        self._tokens = [*self._template.special_tokens, *self._template.tags]
        self._leads: dict[tuple[str, str, str], int] = {}  # characters from start to first text
        self._closings: dict[str, int] = {}  # characters from the last text to the end
        self._prompts: dict[tuple[int, bool], str | None] = {}
        self.text = chat.text

    def spans(self) -> Iterator[Span]:
        """Supervised spans in order of the text; appends the end of an open last turn to `text`."""
        blocks = []
        if not self._chat.opaque:
            blocks = self._template.generated(self._chat.messages, self._chat.variables)
        for turn in sorted(
            self._chat.supervised, key=lambda i: self._chat.marks_of.get(i, [-1])[0]
        ):
            numbers = self._chat.marks_of.get(turn, [])
            if not numbers or numbers[-1] - numbers[0] != len(numbers) - 1:
                raise InputError(HIDES.format(turn + 1))
            first, last = self._chat.text_start(numbers[0]), self._chat.text_end(numbers[-1])
            start = bisect.bisect_left(blocks, first, key=lambda block: block[1])
            end = bisect.bisect_right(blocks, last, key=lambda block: block[0])
            began = self._start(turn, numbers[0])
            if start < end:
                # Some templates mark the header too, which the generation prompt already has.
                yield from ((max(began, first), last) for first, last in blocks[start:end])
            else:
                yield began, self._end(turn, numbers[-1])

    def _start(self, turn: int, number: int) -> int:
        """Start of the turn whose first mark is `number`: after the generation prompt."""
        before, first = self._chat.bounds(number)[0], self._chat.text_start(number)
        own = self.text[first : self._chat.marks[number].position]
        earlier = self._chat.roles[turn - 1] if turn else ""
        key = (_DIGITS.sub("0", self.text[before:first]), own[:_KEY_CHARACTERS], earlier)
        if key not in self._leads:
            self._leads[key] = first - self._find_start(turn, number, before, first)
        return first - self._leads[key]

    def _find_start(self, turn: int, number: int, before: int, first: int) -> int:
        gap = self.text[before : self._chat.marks[number].position]
        prompt = self._prompt(turn)
        if prompt is not None and gap.startswith(prompt):
            start = before + len(prompt)
            # A template that ignores add_generation_prompt writes no header in the prompt.
            if not self.text[start:first].strip() or prompt != self._prompt(turn, asked=False):
                return start
        end = first
        if self._chat.texts[self._chat.marks[number].index].key != "content":
            plain = with_content(self._chat.marked[turn], self._chat.salt)
            plain = {"role": plain["role"], "content": plain["content"]}
            header = self._chat.after(number - 1, [*self._chat.marked[:turn], plain])
            header = None if header is None else header.partition(self._chat.salt)[0]
            end = before + len(header) if header and gap.startswith(header) else first
        if prompt is not None and prompt != self._prompt(turn, asked=False):
            # The prompt may end with reasoning tags that the template writes otherwise here.
            start = before + self._whole_tags(gap, common_start(gap, prompt))
            if start <= end and not self._without_tags(self.text[start:end]).strip():
                return start
        return end

    def _whole_tags(self, text: str, end: int) -> int:
        """`end`, or the start of the tag that contains `end`."""
        tags = _tokens_in(text, self._tokens)
        return next((tag.start() for tag in tags if tag.start() < end < tag.end()), end)

    def _without_tags(self, text: str) -> str:
        for tag in reversed(_tokens_in(text, self._tokens)):
            text = text[: tag.start()] + text[tag.end() :]
        return text

    def _prompt(self, turn: int, *, asked: bool = True) -> str | None:
        """Output after the last text before the turn, with or without a generation prompt."""
        if (turn, asked) not in self._prompts:
            number = self._chat.marks_of[turn][0] - 1
            self._prompts[turn, asked] = self._chat.after(
                number, self._chat.marked[:turn], prompt=asked
            )
        return self._prompts[turn, asked]

    def _end(self, turn: int, number: int) -> int:
        """End of the turn whose last mark is `number`: after its closing, without a line break."""
        last, limit = self._chat.text_end(number), self._chat.bounds(number)[1]
        following = self.text[last:limit]
        if turn < len(self._chat.messages) - 1:
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
        """Closing of an earlier turn: its closing as the last turn, if `following` has that."""
        asked, final = self._closings_at_end(turn, number, last)
        fits = [c.rstrip() for c in (asked, final) if c and following.startswith(c.rstrip())]
        if closing := max(fits, key=len, default=""):
            return closing
        return self._shared(final, following, number) if final else ""

    def _last_closing(self, turn: int, number: int, last: int, following: str) -> str:
        """Closing of the conversation's last turn: the rest of the text, without a header."""
        prompt = self._prompt(turn) or ""
        ends_alike = following[len(following) - common_end(following, prompt) :].strip()
        if ends_alike and prompt == self._prompt(turn, asked=False):
            # The template always or never appends a header, whatever add_generation_prompt is.
            asked = self._continued(turn, number, last)
            if asked is not None and not asked.startswith(following.rstrip()):
                return self._shared(following, asked, number)
        return following.rstrip()

    def _added(self, turn: int, number: int, last: int, closing: str) -> str:
        """Text that would end an open last turn if the conversation went on."""
        asked, _ = self._closings_at_end(turn, number, last)
        more = (_without_start(asked, closing) or "").rstrip()
        continued = _without_start(self._continued(turn, number, last), closing)
        if more and (continued is None or continued.startswith(more)):
            return more
        return self._end_token(continued or "")

    def _closings_at_end(self, turn: int, number: int, last: int) -> tuple[str | None, str | None]:
        """Output after the turn if the conversation ends with it.

        Returns:
            The output with a generation prompt, which is cut off, and the output without one.
        """
        own = self.text[self._chat.marks[number].position : last]
        marked = self._chat.marked[: turn + 1]
        final = _without_start(self._chat.after(number, marked), own)
        asked = _without_start(self._chat.after(number, marked, prompt=True), own)
        prompt, plain = self._prompt(turn), self._prompt(turn, asked=False)
        header = None if prompt is None else _without_start(prompt, plain or "")
        if asked is None or not header or not asked.endswith(header):
            return None, final
        return asked[: len(asked) - len(header)], final

    def _continued(self, turn: int, number: int, last: int) -> str | None:
        """Output between the turn and the text of a message that follows it."""
        role = "tool" if self._chat.messages[turn].get("tool_calls") else "user"
        content = with_content(self._chat.messages[turn], self._chat.salt)["content"]
        after = self._chat.after(
            number, [*self._chat.marked[: turn + 1], {"role": role, "content": content}]
        )
        own = self.text[self._chat.marks[number].position : last]
        return None if after is None else _without_start(after.partition(self._chat.salt)[0], own)

    def _shared(self, one: str, other: str, number: int) -> str:
        """Common prefix of two texts after a turn, up to its last token that opens no header."""
        common = one[: common_start(one, other)]
        tokens = _tokens_in(common, self._tokens)
        message = self._chat.texts[self._chat.marks[number].index].message
        start = self._chat.marks_of[message][0]
        header = self.text[self._chat.bounds(start)[0] : self._chat.text_start(start)]
        if len(tokens) > 1 and tokens[-1].group() in header:
            tokens.pop()
        return common[: tokens[-1].end()] if tokens else ""

    def _end_token(self, following: str) -> str:
        """The end-of-generation token that `following` begins with, and the blanks before it."""
        blanks = len(following) - len(following.lstrip())
        for token in self._template.end_tokens:
            if following.startswith(token, blanks):
                return following[: blanks + len(token)]
        return ""


def _without_start(text: str | None, start: str) -> str | None:
    """The text after its prefix `start`; None if the text has another prefix."""
    return text[len(start) :] if text is not None and text.startswith(start) else None


def _tokens_in(text: str, tokens: Sequence[str]) -> list[re.Match[str]]:
    pattern = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    return list(re.finditer(pattern, text)) if pattern else []
