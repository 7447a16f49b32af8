"""Chat: a conversation as token ids, with labels on the assistant's turns only."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from g2is_ray.conversation import Conversation, Message
from g2is_ray.errors import InputError, SettingError

Span = tuple[int, int]  # characters [start, end) of the rendered conversation

IGNORED = -100  # the label that Hugging Face models leave out of the loss
_CHARACTERS = 16  # of a token; more than nearly any text has on average
_MARGIN_TOKENS = 64  # beyond those that are kept, which are then the same as in the whole text

PLAIN_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""Chat template for base models that come without one, as in Tülu's training:

    <|system|>
    You are terse.
    <|user|>
    What is 2 + 2?
    <|assistant|>
    4</s>

with the beginning-of-sequence token first, if the tokenizer has one, and its end-of-sequence
token after every assistant turn. The `<|...|>` are plain text, so the vocabulary does not grow.
"""


@dataclass(frozen=True)
class Encoded:
    """A conversation cut to at most `max_tokens` tokens."""

    input_ids: list[int]
    labels: list[int]  # the token's id in assistant turns, -100 elsewhere; not shifted
    tokens_before_truncation: int  # of a conversation far longer than that: more than are kept

    @property
    def truncated(self) -> bool:
        return self.tokens_before_truncation > len(self.input_ids)

    @property
    def supervised_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)


class ChatEncoder:
    """Encodes conversations with a tokenizer's chat template.

    Args:
        tokenizer: a fast one, because labels need the tokens' places in the text. Where it
            has no chat template, it is given `PLAIN_TEMPLATE`.
        max_tokens: longest encoding in tokens.

    Raises:
        SettingError: max_tokens is below 1.
        InputError: the tokenizer is not fast, or has neither a chat template nor an
            end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> None:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        if max_tokens < 1:
            raise SettingError(f"max_tokens must be at least 1, got {max_tokens}")
        if not tokenizer.is_fast:
            raise InputError(
                f"the tokenizer of {name} is not a fast one, which labels need; "
                "convert it to a tokenizer.json"
            )
        if tokenizer.chat_template is None:
            if tokenizer.eos_token is None:
                raise InputError(
                    f"the tokenizer of {name} has neither a chat template nor an end-of-sequence "
                    "token to close a turn with; set one of them"
                )
            tokenizer.chat_template = PLAIN_TEMPLATE
        self.tokenizer: Any = tokenizer
        self.max_tokens = max_tokens
        self._special_tokens = _special_tokens(tokenizer)

    def encode(self, example: Conversation | Sequence[Message]) -> Encoded:
        """The whole conversation, cut on the right; every assistant turn is supervised.

        A turn's labels cover its text and the end-of-turn tokens that close it, not its
        header. The conversation's first token is never supervised, as nothing predicts it.

        Raises:
            InputError: the chat template rejects the conversation, hides where a turn is, or
                no supervised token is left. The message does not name the row.
        """
        conversation = _as_conversation(example)
        messages = conversation.messages
        text = self._render(messages)
        encoding = self._tokenize_start(text)
        found = len(encoding["input_ids"])
        ids: list[int] = encoding["input_ids"][: self.max_tokens]
        offsets: list[Span] = encoding["offset_mapping"][: self.max_tokens]
        end = offsets[-1][1] if offsets else 0
        # A turn costs two renderings, so those beyond what is kept are not looked for.
        spans = list(itertools.takewhile(lambda span: span[0] < end, self._spans(messages, text)))
        marks = _overlaps(offsets, spans)
        labels = [token if mark else IGNORED for token, mark in zip(ids, marks, strict=True)]
        labels[:1] = [IGNORED]
        encoded = Encoded(ids, labels, found)
        if not encoded.supervised_tokens:
            raise InputError(
                f"the first {len(ids)} tokens of the conversation hold no assistant's text; "
                + ("raise max_tokens" if encoded.truncated else "add one")
            )
        return encoded

    def encode_prompt(self, example: Conversation | Sequence[Message]) -> list[int]:
        """Token ids of what comes before the last assistant turn, with its header, to decode from.

        All messages are taken if none is the assistant's. Cut on the left, so that the
        question and the header stay.

        Raises:
            InputError: the chat template rejects the messages, or there are none.
        """
        messages = _as_conversation(example).messages
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        before = messages[: turns[-1]] if turns else messages
        ids: list[int] = self._tokenize(self._render(before, prompt=True))["input_ids"]
        return ids[-self.max_tokens :]

    def _tokenize_start(self, text: str) -> Any:
        """Tokens of the text: all of them, or more than are kept.

        A row may be a thousand times longer than what is kept of it, and its tokens take a
        hundred times the memory of its text.
        """
        tokens = self.max_tokens + _MARGIN_TOKENS
        start = self._tokenize(text[: _CHARACTERS * tokens], return_offsets_mapping=True)
        if len(start["input_ids"]) >= tokens or len(text) <= _CHARACTERS * tokens:
            return start
        return self._tokenize(text, return_offsets_mapping=True)

    def _tokenize(self, text: str, **options: Any) -> Any:
        # The template has put in the special tokens; `verbose` would warn of every long row.
        return self.tokenizer(text, add_special_tokens=False, verbose=False, **options)

    def _render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        if not messages:
            raise InputError("there is no message before the assistant's turn, or none at all")
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template is a program, and may fail in any way
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"the model's chat template rejects the conversation ({reason})"
            ) from error
        return text

    def _spans(self, messages: Sequence[Message], text: str) -> Iterator[Span]:
        """Where each assistant turn is in the rendered conversation.

        Found by position, never by searching for what a row says: whoever wrote the row may
        have put markers or the answer into the question.
        """
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            span = self._span_between_prefixes(messages, turn, text)
            span = span or self._span_around_stand_in(messages, turn, text)
            if span is None:
                raise InputError(
                    f"the model's chat template hides where the assistant's message {turn + 1} is; "
                    "use a template that renders each message in one piece"
                )
            yield span

    def _span_between_prefixes(
        self, messages: Sequence[Message], turn: int, text: str
    ) -> Span | None:
        """From the end of the generation prompt to the end of the conversation up to the turn.

        None where these are no prefixes of the whole, because the template writes a turn
        differently when others follow.
        """
        try:
            before = self._render(messages[:turn], prompt=True)
            after = self._render(messages[: turn + 1])
        except InputError:
            return None  # a part of a conversation may be what the template rejects
        if text.startswith(after) and after.startswith(before):
            # The end-of-turn token is to be learned, the line break after it is not.
            return len(before), max(len(before), len(after.rstrip()))
        return None

    def _span_around_stand_in(
        self, messages: Sequence[Message], turn: int, text: str
    ) -> Span | None:
        """Where the conversation differs from one that says something else in this turn.

        The turn's content is what stands between the stand-in's surroundings. The special
        tokens that close it are added; they are known from the conversation that ends here.
        """
        stand_in = "StandIn"
        while stand_in in text:
            stand_in += "X"
        other: Message = {**messages[turn], "content": stand_in}
        try:
            whole = self._render([*messages[:turn], other, *messages[turn + 1 :]])
            last = self._render([*messages[:turn], other])
        except InputError:
            return None
        before, found, after = whole.partition(stand_in)
        start, end = len(before), len(text) - len(after)
        fits = text.startswith(before) and text.endswith(after) and start <= end
        if not found or stand_in in after or not fits:
            return None
        closing = last.rpartition(stand_in)[2]
        tokens = [re.escape(token) for token in self._special_tokens if token in closing]
        match = re.match(rf"(?:\s*(?:{'|'.join(tokens)}))*", after) if tokens else None
        return start, end + (match.end() if match else 0)


def _as_conversation(example: Conversation | Sequence[Message]) -> Conversation:
    return example if isinstance(example, Conversation) else Conversation.of(example)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every special token's text, longest first, so that none hides behind its beginning."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    tokens = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    return sorted(tokens, key=lambda token: (-len(token), token))


def _overlaps(offsets: Sequence[Span], spans: Sequence[Span]) -> Iterator[bool]:
    """Whether each token shares a character with a span; both are in order of the text.

    Some tokenizers trim blanks off the offsets (Llama 3's do), which leaves a token of
    nothing but blanks as the point where they end; it counts as in a span if the point is.
    """
    number = 0
    for start, end in offsets:
        while number < len(spans) and spans[number][1] <= start:
            number += 1
        yield number < len(spans) and spans[number][0] < end
