"""Templates: what a tokenizer's chat template writes for a conversation."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from g2is_ray.chat.conversation import Message
from g2is_ray.errors import InputError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]  # characters [start, end) of the rendered conversation

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

_TAG = re.compile(r"</?[A-Za-z][\w:|-]*>|<\|[\w/▁-]+\|>|\[/?[A-Z][A-Z_]+\]")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "a question"
_RESERVED = {  # what the encoder itself tells the template, and transformers' own arguments
    *("messages", "conversation", "add_generation_prompt", "continue_final_message"),
    *("chat_template", "tokenize", "sanitize_control_tokens", "padding", "truncation"),
    *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    *("tokenizer_kwargs", "strftime_now"),
}
_DIRECTIVES = [
    f"%{mark}{letter}" for mark in ("-", "") for letter in "aAbBcdeFfGHIjmMpSTuUVwWxXyYZz"
]


class TemplateError(InputError):
    """The chat template rejects a conversation."""


class ChatTemplate:
    """A tokenizer's chat template, with the date that it may ask for held fast.

    Args:
        tokenizer: where it has no chat template, it is given `PLAIN_TEMPLATE`.
        date: day that templates are told, as YYYY-MM-DD; empty means today.
        end_tokens: tokens that generation stops at; those of the generation_config.json beside
            the tokenizer if not given, or else its end-of-sequence token.

    Raises:
        InputError: the tokenizer has neither a chat template nor an end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        date: str = "",
        end_tokens: Sequence[str] = (),
    ) -> None:
        self.name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        if tokenizer.chat_template is None:
            if tokenizer.eos_token is None:
                raise InputError(
                    f"the tokenizer of {self.name} has neither a chat template nor an "
                    "end-of-sequence token to close a turn with; set one of them"
                )
            tokenizer.chat_template = PLAIN_TEMPLATE
        self.is_plain = tokenizer.chat_template == PLAIN_TEMPLATE
        self._tokenizer: Any = tokenizer
        self._date = datetime.date.fromisoformat(date or today())
        sources = tokenizer.chat_template
        text = "\n".join(sources.values()) if isinstance(sources, dict) else str(sources)
        self.tags = sorted(set(_TAG.findall(text)), key=lambda tag: (-len(tag), tag))
        """Tags that the template names, longest first: it may cut a message there."""
        self.special_tokens = _special_tokens(tokenizer)
        """Texts of special tokens, longest first, so that none hides behind its beginning."""
        self.end_tokens = list(end_tokens) or _end_tokens(tokenizer)
        """Texts of the tokens that generation stops at."""
        self.takes_parts = self._takes_parts()
        """Whether content is read as a list of parts only, as some vision models' templates do."""

    def render(
        self, messages: Sequence[Message], variables: Mapping[str, Any], *, prompt: bool = False
    ) -> str:
        """The conversation as text, followed by the assistant's header if `prompt`.

        Raises:
            InputError: the chat template rejects the conversation.
        """
        with _explained():
            return self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._source(variables),
                tokenize=False,
                add_generation_prompt=prompt,
                **variables,
            )

    def generated(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> list[Span]:
        """What the template itself marks as the assistant's with `{% generation %}`, in order."""
        source = self._source(variables)
        if not _GENERATION.search(source):
            return []
        from transformers.utils.chat_template_utils import render_jinja_template

        with _explained():
            render: Any = render_jinja_template
            _, spans = render(
                conversations=[list(messages)],
                chat_template=source,
                return_assistant_tokens_mask=True,
                **{**self._tokenizer.special_tokens_map, **variables},
            )
        return [(start, end) for start, end in spans[0] if start < end]

    def _takes_parts(self) -> bool:
        shown = []
        for content in (_PROBE, [{"type": "text", "text": _PROBE}]):
            try:
                text = self.render([{"role": "user", "content": content}], {})
            except InputError:
                text = ""
            shown.append(_PROBE in text and "'text'" not in text)
        return shown == [False, True]

    def _source(self, variables: Mapping[str, Any]) -> str:
        if own := sorted(_RESERVED & variables.keys()):
            raise InputError(
                f"the row sets the chat template's variable {own[0]}, which is not a row's to set; "
                "remove it"
            )
        templates = self._tokenizer.chat_template
        name = "rag" if variables.get("documents") and "rag" in templates else None
        if not isinstance(templates, dict):
            name = None
        source = self._tokenizer.get_chat_template(name, variables.get("tools") or None)
        if "strftime_now" not in source:
            return source
        # Jinja drops the line break after a block, and the template may begin with its own.
        return _date_macro(self._date, source) + "\n" * source.startswith("\n") + source


def identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides the tokens of a conversation: chat template and tokenizer."""
    tokens: Any = tokenizer
    core = json.loads(tokens.backend_tokenizer.to_str()) if tokens.is_fast else {}
    for setting in ("version", "truncation", "padding"):
        core.pop(setting, None)
    template = tokens.chat_template or PLAIN_TEMPLATE
    facts = [core, template, tokens.special_tokens_map, _end_tokens(tokens)]
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def asks_for_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template reads the date, so that its text changes from day to day."""
    return "strftime_now" in json.dumps(tokenizer.chat_template)


def today() -> str:
    """The day of this machine's clock, as YYYY-MM-DD."""
    return datetime.datetime.now().astimezone().date().isoformat()


@functools.lru_cache
def _date_macro(date: datetime.date, source: str) -> str:
    """Jinja's text of a `strftime_now` for midnight of `date`, for what a template's source asks.

    A macro, because transformers gives a template no functions of ours.
    """
    now = datetime.datetime.combine(date, datetime.time())
    pairs = [(one, now.strftime(one)) for one in _DIRECTIVES if one in source]
    return (
        "{% macro strftime_now(format) %}{% set now = namespace(text=format) %}"
        f"{{% for one, value in {pairs!r} %}}"
        "{% set now.text = now.text | replace(one, value) %}{% endfor %}"
        "{{ now.text }}{% endmacro %}"
    )


class _explained:  # noqa: N801  reads as a verb in `with`
    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # A template is a program, and may fail in any way.
        if isinstance(error, Exception) and not isinstance(error, InputError):
            reason = one_line(error)
            raise TemplateError(
                f"the model's chat template rejects the conversation ({reason})"
            ) from error


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    tokens = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    return sorted(tokens, key=lambda token: (-len(token), token))


def _end_tokens(tokenizer: Any) -> list[str]:
    from transformers import GenerationConfig

    ids = None
    try:
        if name := tokenizer.name_or_path:
            ids = GenerationConfig.from_pretrained(name).eos_token_id
    except (OSError, ValueError):  # there is none
        pass
    if ids is None:
        ids = tokenizer.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in ids if i is not None]
    return [str(token) for token in tokens if token]
