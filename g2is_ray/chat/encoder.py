"""ChatEncoder: conversations to token ids, with labels on the assistant's turns only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from g2is_ray.chat.conversation import Conversation, Message
from g2is_ray.chat.templates import PLAIN_TEMPLATE, ChatTemplate, Span
from g2is_ray.chat.turns import render_turns
from g2is_ray.errors import InputError, SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORED", "PLAIN_TEMPLATE", "ChatEncoder", "Encoded"]

IGNORED = -100  # label of tokens that Hugging Face models leave out of the loss
_CHARACTERS_PER_TOKEN = 16  # nearly every text averages fewer
_MARGIN_TOKENS = 64  # tokenized beyond the cut, so that the kept tokens equal the whole text's


@dataclass(frozen=True)
class Encoded:
    """A conversation truncated to at most `max_tokens` tokens."""

    input_ids: list[int]
    labels: list[int]  # the token's id in supervised turns, -100 elsewhere; not shifted
    tokens_before_truncation: int  # a lower bound if the conversation is much longer than the cut
    altered: bool = False  # the chat template drops or changes a part of a message

    @property
    def truncated(self) -> bool:
        return self.tokens_before_truncation > len(self.input_ids)

    @property
    def supervised_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)


class ChatEncoder:
    """Encodes conversations with a tokenizer's chat template.

    Args:
        tokenizer: a fast tokenizer, because labels need token offsets. A tokenizer without a chat
            template gets `PLAIN_TEMPLATE`.
        max_tokens: longest encoding in tokens.
        template_date: date that the chat template sees, as YYYY-MM-DD; empty means today.
        end_tokens: tokens that stop generation. Default: the tokens in the tokenizer's
            generation_config.json, or its end-of-sequence token.
        vocabulary: number of rows of the model's embedding, if rows with larger token ids are to
            be refused.
        characters_per_token: long texts are tokenized up to this many characters per kept token
            first, and entirely only if that gives too few tokens.

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
        vocabulary: int | None = None,
        characters_per_token: int = _CHARACTERS_PER_TOKEN,
    ) -> None:
        if max_tokens < 1:
            raise SettingError(f"max_tokens must be at least 1, got {max_tokens}")
        if not tokenizer.is_fast:
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise InputError(
                f"the tokenizer of {name} is slow: labels need the offsets of a fast tokenizer; "
                "convert it to a tokenizer.json"
            )
        self.template = ChatTemplate(tokenizer, template_date, end_tokens)
        self.tokenizer: Any = tokenizer
        self.max_tokens = max_tokens
        self._vocabulary = vocabulary
        self._characters_per_token = characters_per_token
        self._added_tokens = frozenset(tokenizer.added_tokens_decoder)

    def encode(self, example: Conversation | Sequence[Message]) -> Encoded:
        """The whole conversation, truncated on the right, with labels on its supervised turns.

        A turn's labels cover its text and the end-of-turn tokens that close it, not its
        header. The conversation's first token is never supervised, as nothing predicts it.

        Args:
            example: a conversation, or messages whose assistant turns are all supervised.

        Raises:
            InputError: the chat template rejects the conversation, drops a message or hides
                where a turn is; no supervised token is left; or a token is outside of the
                model's vocabulary. The message does not name the row.
        """
        rendered = render_turns(self.template, _as_conversation(example))
        encoding = self._tokenize_start(rendered.text)
        found = len(encoding["input_ids"])
        ids: list[int] = encoding["input_ids"][: self.max_tokens]
        offsets: list[Span] = encoding["offset_mapping"][: self.max_tokens]
        added = [token in self._added_tokens for token in ids]
        inside = _overlaps(offsets, rendered.spans, added)
        labels = [token if is_in else IGNORED for token, is_in in zip(ids, inside, strict=True)]
        labels[:1] = [IGNORED]
        encoded = Encoded(ids, labels, found, rendered.altered)
        if not encoded.supervised_tokens:
            raise InputError(
                f"the first {len(ids)} tokens of the conversation have no assistant text; "
                + ("raise max_tokens" if encoded.truncated else "add an assistant turn")
            )
        self._require_known_tokens(ids)
        return encoded

    def encode_prompt(self, example: Conversation | Sequence[Message]) -> list[int]:
        """Token ids of the prompt for the last supervised turn, including its header.

        The prompt holds all messages if no turn is supervised. It is truncated on the left, so
        that the question and the header stay.

        Raises:
            InputError: the chat template rejects the messages or drops one, or no message
                precedes the turn.
        """
        conversation = _as_conversation(example)
        turns = [i for i, supervised in enumerate(conversation.supervised) if supervised]
        before = conversation.until(turns[-1]) if turns else conversation
        if not before.messages:
            raise InputError("no message precedes the assistant's turn; add a user message")
        messages = render_turns(self.template, before).messages
        text = self.template.render(messages, before.template, prompt=True)
        ids: list[int] = self._tokenize(text)["input_ids"]
        return ids[-self.max_tokens :]

    def _tokenize_start(self, text: str) -> Any:
        """The encoding of the text, or of a prefix with more than `max_tokens` tokens.

        A row may be a thousand times longer than its kept prefix, and tokens take a hundred times
        the memory of their text.
        """
        tokens = self.max_tokens + _MARGIN_TOKENS
        characters = self._characters_per_token * tokens
        start = self._tokenize(text[:characters], return_offsets_mapping=True)
        if len(start["input_ids"]) >= tokens or len(text) <= characters:
            return start
        return self._tokenize(text, return_offsets_mapping=True)

    def _require_known_tokens(self, ids: Sequence[int]) -> None:
        largest = max(ids)
        if self._vocabulary is not None and largest >= self._vocabulary:
            raise InputError(
                f"token {self.tokenizer.convert_ids_to_tokens(largest)!r} has id {largest}, but "
                f"the model's embedding has {self._vocabulary} rows; resize the embedding, or use "
                "the model's own tokenizer"
            )

    def _tokenize(self, text: str, **options: Any) -> Any:
        # The template's text has the special tokens; `verbose` would warn about every long row.
        return self.tokenizer(text, add_special_tokens=False, verbose=False, **options)


def _as_conversation(example: Conversation | Sequence[Message]) -> Conversation:
    return example if isinstance(example, Conversation) else Conversation.of(example)


def _overlaps(
    offsets: Sequence[Span], spans: Sequence[Span], added: Sequence[bool]
) -> Iterator[bool]:
    """Whether each token overlaps a span; tokens and spans are in order of the text.

    Some tokenizers (Llama 3) trim blanks off the offsets, so a token of blanks has the empty
    range where they end; it counts as inside a span that contains this position. An added token
    may absorb the blanks after it (Phi-3), so an added token that begins before a span is outside.
    """
    number = 0
    for (start, end), is_added in zip(offsets, added, strict=True):
        while number < len(spans) and spans[number][1] <= start:
            number += 1
        if number == len(spans):
            yield False
        else:
            yield spans[number][0] < end and not (is_added and start < spans[number][0])
