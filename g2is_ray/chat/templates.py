"""Templates: rendering of conversations with a tokenizer's chat template."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from g2is_ray.chat.conversation import Message
from g2is_ray.errors import InputError

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
"""Chat template for base models without one, as in Tülu's training:

    <|system|>
    You are terse.
    <|user|>
    What is 2 + 2?
    <|assistant|>
    4</s>

The text begins with the tokenizer's beginning-of-sequence token, if it has one, and every assistant
turn ends with its end-of-sequence token. `<|...|>` are plain text, so the vocabulary does not grow.
"""

_TAG = re.compile(r"</?[A-Za-z][\w:|-]*>|<\|[\w/▁-]+\|>|\[/?[A-Z][A-Z_]+\]")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "a question"
_RESERVED = {  # variables set by the encoder, and arguments of transformers
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
    """A tokenizer's chat template with a fixed date.

    Args:
        tokenizer: a tokenizer; without a chat template, it gets `PLAIN_TEMPLATE`.
        date: date that the template sees, as YYYY-MM-DD; empty means today.
        end_tokens: tokens that stop generation. Default: the tokens in the tokenizer's
            generation_config.json, or its end-of-sequence token.

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
        """Tags in the template's source, longest first; the template may cut messages at them."""
        self.special_tokens = _special_tokens(tokenizer)
        """Texts of special tokens, longest first, so that a token is matched before its prefix."""
        self.end_tokens = list(end_tokens) or _end_tokens(tokenizer)
        """Texts of the tokens that stop generation."""
        self.takes_parts = self._takes_parts()
        """Whether content must be a list of parts, as in some vision models' templates."""

    def render(
        self, messages: Sequence[Message], variables: Mapping[str, Any], *, prompt: bool = False
    ) -> str:
        """The conversation as text, followed by the assistant's header if `prompt`.

        Raises:
            InputError: the chat template rejects the conversation.
        """
        with _as_template_error():
            return self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._source(variables),
                tokenize=False,
                add_generation_prompt=prompt,
                **variables,
            )

    def generated(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> list[Span]:
        """Spans inside the template's `{% generation %}` blocks, in order of the text.

        Raises:
            InputError: the chat template rejects the conversation.
        """
        source = self._source(variables)
        if not _GENERATION.search(source):
            return []
        from transformers.utils.chat_template_utils import render_jinja_template

        with _as_template_error():
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
                f"the row sets the chat template's variable {own[0]}, which is reserved; remove it"
            )
        templates = self._tokenizer.chat_template
        name = "rag" if variables.get("documents") and "rag" in templates else None
        if not isinstance(templates, dict):
            name = None
        source = self._tokenizer.get_chat_template(name, variables.get("tools") or None)
        if "strftime_now" not in source:
            return source
        # Jinja drops the line break after a block, and the template may begin with a line break.
        return _date_macro(self._date, source) + "\n" * source.startswith("\n") + source


def identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the chat template and the tokenizer: everything that determines tokens."""
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
    """Source of a Jinja macro `strftime_now` that formats midnight of `date`.

    transformers accepts no custom functions for a template, so a macro replaces its function. The
    macro knows the directives that occur in `source`.
    """
    now = datetime.datetime.combine(date, datetime.time())
    pairs = [(one, now.strftime(one)) for one in _DIRECTIVES if one in source]
    return (
        "{% macro strftime_now(format) %}{% set now = namespace(text=format) %}"
        f"{{% for one, value in {pairs!r} %}}"
        "{% set now.text = now.text | replace(one, value) %}{% endfor %}"
        "{{ now.text }}{% endmacro %}"
    )


@contextmanager
def _as_template_error() -> Iterator[None]:
    """Raise a TemplateError for any error of a template: a template is a program."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise TemplateError(
            f"the model's chat template rejects the conversation ({reason}); change the "
            "conversation, or use another template"
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
    except (OSError, ValueError):  # no generation_config.json
        pass
    if ids is None:
        ids = tokenizer.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in ids if i is not None]
    return [str(token) for token in tokens if token]
