"""TRL's training templates as an oracle for the supervised tokens of each model family.

TRL patches the chat templates of model families with `{% generation %}` blocks. ChatEncoder encodes
conversations with the original template, transformers with the patched template.
`docs/templates.md` has the outcome; `python tests/chat/test_trl_masks.py` rewrites its table.
"""

import functools
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from g2is_ray.chat.conversation import Conversation
from g2is_ray.chat.encoder import IGNORED, ChatEncoder
from g2is_ray.chat.shapes import content_parts
from g2is_ray.errors import InputError

pytestmark = pytest.mark.trainers

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "templates.md"
TRL = find_spec("trl")
FOLDER = Path(TRL.origin).parent / "chat_templates" if TRL and TRL.origin else Path("none")
FAMILIES = sorted(file.name.removesuffix("_training.jinja") for file in FOLDER.glob("*_training.*"))
PARTS = ["smolvlm", "idefics3", "llava_next"]  # families that take content as a list of parts
END_TOKENS = {"glm4moe": ["<|endoftext|>", "<|user|>", "<|observation|>"]}  # generation_config
_SPECIAL = re.compile(
    r"<\|[^|>\s'\"{}]+\|?>|<[a-z_]+\|>|<(?:start_of_turn|end_of_turn|end_of_utterance)>"
    r"|<\uff5c[^\uff5c]+\uff5c>"  # DeepSeek's bars
)


def chat(roles, *texts):
    """Messages with the roles whose first letters are `roles`."""
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": names[r], "content": text} for r, text in zip(roles, texts, strict=True)]


def thinking(*turns):
    """The messages, with reasoning in the assistant's."""
    return [
        {**one, "reasoning_content": "hm"} if one["role"] == "assistant" else one for one in turns
    ]


_HM = "<think>\nhm\n</think>\n\n"
_FUNCTION = {"name": "add", "arguments": {"a": 2, "of": "two"}}
_CALL = {"type": "function", "function": _FUNCTION}
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "description": "A number."}},
    "required": ["a"],
}
_TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": _SCHEMA},
}
_CALLING = [
    *chat("u", "Add."),
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "4", "name": "add"},
    *chat("a", "Four."),
]
CONVERSATIONS = {
    "one turn": chat("ua", "Q1", "A1"),
    "two turns": chat("uaua", "Q1", "A1", "Q2", "A2"),
    "system": chat("suaua", "Be kind.", "Q1", "A1", "Q2", "A2"),
    "user last": chat("uau", "Q1", "A1", "Q2"),
    "blanks": chat("ua", " Q1\n", "  A1 \n\n x "),
    "unicode": chat("ua", "é🙂", "naïve 🙂 中文 end"),
    "tags": chat("ua", "<b>Q</b>", "<p>A</p>\n```\n{}\n```"),
    "think tags": chat("uaua", "Q1", f"{_HM}A1", "Q2", f"{_HM}A2"),
    "reasoning": thinking(*chat("uaua", "Q1", "A1", "Q2", "A2")),
    "calls": _CALLING,
    "tools": Conversation(
        messages=_CALLING, supervised=[False, True, False, True], template={"tools": [_TOOL]}
    ),
}

SAME = "same"
BREAK = "line break"
PROMPT = "prompt"
HISTORY = "history"
REFUSED = "refused"
BOTH = "both refuse"
OTHER = "other"
MEANINGS = [SAME, BREAK, PROMPT, HISTORY, REFUSED, BOTH, OTHER]  # from equal to most different


@functools.cache
def encoder_of(family):
    """An encoder with the small model's tokenizer and a family's template and special tokens."""
    template = (FOLDER / f"{family}.jinja").read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "examples" / "tiny-lm")
    tokens = sorted(set(_SPECIAL.findall(template)))
    tokenizer.add_tokens([AddedToken(one, special=True) for one in tokens], special_tokens=True)
    tokenizer.chat_template = template
    return ChatEncoder(tokenizer, max_tokens=4096, end_tokens=END_TOKENS.get(family, ()))


def runs(tokenizer, ids, marks):
    """Text of each run of supervised tokens."""
    found, run = [], []
    for token, mark in zip([*ids, 0], [*marks, 0], strict=True):
        if mark:
            run.append(token)
        elif run:
            found.append(tokenizer.decode(run))
            run = []
    return found


def ours(family, example):
    """Runs of supervised text by ChatEncoder; None if it refuses the row."""
    encoder = encoder_of(family)
    try:
        encoded = encoder.encode(example)
    except InputError:
        return None
    marks = [label != IGNORED for label in encoded.labels]
    return runs(encoder.tokenizer, encoded.input_ids, marks)


def theirs(family, example):
    """Runs of supervised text by TRL's template; None if the template raises."""
    tokenizer = encoder_of(family).tokenizer
    messages = content_parts(example.messages) if family in PARTS else example.messages
    try:
        encoded = tokenizer.apply_chat_template(
            messages,
            chat_template=(FOLDER / f"{family}_training.jinja").read_text(encoding="utf-8"),
            return_assistant_tokens_mask=True,
            return_dict=True,
            **example.template,
        )
    except Exception:  # a template may fail in any way
        return None
    return runs(tokenizer, encoded["input_ids"], encoded["assistant_masks"])


def compare(family, example, turn, mine, wanted):
    """How one run of supervised text differs from TRL's."""
    mine, wanted = mine.rstrip(), wanted.rstrip()
    more = wanted.removesuffix(mine)
    if mine == wanted:
        return BREAK
    if more == wanted:
        return OTHER
    encoder = encoder_of(family)
    prompt = encoder.tokenizer.decode(encoder.encode_prompt(example.until(turn + 1)))
    if not more.strip() or more in prompt:
        return PROMPT
    return HISTORY if "</think>" in more else OTHER


def outcome(family, name):
    """How a family's supervised tokens for a conversation differ from TRL's."""
    example = CONVERSATIONS[name]
    if not isinstance(example, Conversation):
        example = Conversation.of(example)
    mine, wanted = ours(family, example), theirs(family, example)
    if mine is None:
        return BOTH if wanted is None else REFUSED
    if mine == wanted:
        return SAME
    turns = [i for i, supervised in enumerate(example.supervised) if supervised]
    if wanted is None or not len(mine) == len(wanted) == len(turns):
        return OTHER
    found = {compare(family, example, *one) for one in zip(turns, mine, wanted, strict=True)}
    return max(found, key=MEANINGS.index)


def table():
    """The page's table: the conversations with each outcome, by family."""
    lines = ["| family | " + " | ".join(MEANINGS) + " |", "| --- " * (len(MEANINGS) + 1) + "|"]
    for family in FAMILIES:
        found = {name: outcome(family, name) for name in CONVERSATIONS}
        cells = []
        for kind in MEANINGS:
            names = [name for name, one in found.items() if one == kind]
            shown = kind in (SAME, BREAK, PROMPT) or not names
            cells.append((str(len(names)) if names else "") if shown else ", ".join(names))
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@pytest.mark.skipif(not FAMILIES, reason="needs TRL")
def test_the_page_says_how_each_family_compares():
    assert table() in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    start = page.index("| family |")
    PAGE.write_text(page[:start] + table() + page[page.index("\n\n", start) :], encoding="utf-8")
