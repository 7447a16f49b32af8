"""Chat: a conversation as token ids, with labels on the assistant's turns only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from g2is_ray.chat.conversation import Conversation, Message
from g2is_ray.chat.templates import PLAIN_TEMPLATE, ChatTemplate, Span
from g2is_ray.chat.turns import lay_out
from g2is_ray.errors import InputError, SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORED", "PLAIN_TEMPLATE", "ChatEncoder", "Encoded"]

IGNORED = -100  # the label that Hugging Face models leave out of the loss
_CHARACTERS = 16  # of a token; more than nearly any text has on average
_MARGIN_TOKENS = 64  # beyond those that are kept, which are then the same as in the whole text


@dataclass(frozen=True)
class Encoded:
    """A conversation cut to at most `max_tokens` tokens."""

    input_ids: list[int]
    labels: list[int]  # the token's id in supervised turns, -100 elsewhere; not shifted
    tokens_before_truncation: int  # of a conversation far longer than that: more than are kept
    altered: bool = False  # the chat template leaves out or changes a part of a message

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
        template_date: day that the chat template is told, as YYYY-MM-DD; empty means today.
        end_tokens: tokens that generation stops at; those of the generation_config.json beside
            the tokenizer if not given, or else its end-of-sequence token.

    Raises:
        SettingError: max_tokens is below 1.
        InputError: the tokenizer is not fast, or has neither a chat template nor an
            end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int,
        template_date: str = "",
        end_tokens: Sequence[str] = (),
    ) -> None:
        if max_tokens < 1:
            raise SettingError(f"max_tokens must be at least 1, got {max_tokens}")
        if not tokenizer.is_fast:
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise InputError(
                f"the tokenizer of {name} is not a fast one, which labels need; "
                "convert it to a tokenizer.json"
            )
        self.template = ChatTemplate(tokenizer, template_date, end_tokens)
        self.tokenizer: Any = tokenizer
        self.max_tokens = max_tokens
        self._added = frozenset(tokenizer.added_tokens_decoder)

    def encode(self, example: Conversation | Sequence[Message]) -> Encoded:
        """The whole conversation, cut on the right, with labels on its supervised turns.

        A turn's labels cover its text and the end-of-turn tokens that close it, not its
        header. The conversation's first token is never supervised, as nothing predicts it.

        Args:
            example: of plain messages, every assistant turn is supervised.

        Raises:
            InputError: the chat template rejects the conversation, leaves out a message, hides
                where a turn is, or no supervised token is left. The message does not name the row.
        """
        rendered = lay_out(self.template, _as_conversation(example))
        encoding = self._tokenize_start(rendered.text)
        found = len(encoding["input_ids"])
        ids: list[int] = encoding["input_ids"][: self.max_tokens]
        offsets: list[Span] = encoding["offset_mapping"][: self.max_tokens]
        marks = _overlaps(offsets, rendered.spans, [token in self._added for token in ids])
        labels = [token if mark else IGNORED for token, mark in zip(ids, marks, strict=True)]
        labels[:1] = [IGNORED]
        encoded = Encoded(ids, labels, found, rendered.altered)
        if not encoded.supervised_tokens:
            raise InputError(
                f"the first {len(ids)} tokens of the conversation hold no assistant's text; "
                + ("raise max_tokens" if encoded.truncated else "add one")
            )
        return encoded

    def encode_prompt(self, example: Conversation | Sequence[Message]) -> list[int]:
        """Token ids of what comes before the last supervised turn, with its header, to decode from.

        All messages are taken if no turn is supervised. Cut on the left, so that the
        question and the header stay.

        Raises:
            InputError: the chat template rejects the messages or leaves one out, or there are
                none.
        """
        conversation = _as_conversation(example)
        turns = [i for i, supervised in enumerate(conversation.supervised) if supervised]
        before = conversation.until(turns[-1]) if turns else conversation
        if not before.messages:
            raise InputError("there is no message before the assistant's turn, or none at all")
        messages = lay_out(self.template, before).messages
        text = self.template.render(messages, before.template, prompt=True)
        ids: list[int] = self._tokenize(text)["input_ids"]
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


def _as_conversation(example: Conversation | Sequence[Message]) -> Conversation:
    return example if isinstance(example, Conversation) else Conversation.of(example)


def _overlaps(
    offsets: Sequence[Span], spans: Sequence[Span], added: Sequence[bool]
) -> Iterator[bool]:
    """Whether each token shares a character with a span; all are in order of the text.

    Some tokenizers trim blanks off the offsets (Llama 3's do), which leaves a token of
    nothing but blanks as the point where they end; it counts as in a span if the point is.
    An added token may swallow blanks that follow it (Phi-3's do), so one that begins before
    a span is not in it.
    """
    number = 0
    for (start, end), is_added in zip(offsets, added, strict=True):
        while number < len(spans) and spans[number][1] <= start:
            number += 1
        if number == len(spans):
            yield False
        else:
            yield spans[number][0] < end and not (is_added and start < spans[number][0])
