"""Templates: dates, several templates, generation blocks, variables, and identity."""

import copy
import dataclasses

import pytest
from chat_kinds import CHATML, LLAMA3, conversation, encoder_for, make_tokenizer, supervised

from g2is_ray.chat import templates
from g2is_ray.chat.conversation import Conversation
from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.errors import InputError

TWO = conversation("a", "yes", "b", "no")
DATED = "{{ 'Today is ' + strftime_now('%d %b %Y, %H:%M:%S.%f') + '\n' }}" + CHATML
MARKED = (  # a template with {% generation %} blocks
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>\n' }}"
    "{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def varied(**variables):
    return dataclasses.replace(Conversation.of(TWO), template=variables)


def text_of(encoder, example):
    return encoder.tokenizer.decode(encoder.encode(example).input_ids)


def test_a_template_sees_the_date_of_the_settings():
    tokenizer = make_tokenizer(DATED)
    encoder = ChatEncoder(tokenizer, max_tokens=999, template_date="2025-03-09")
    assert text_of(encoder, TWO).startswith("Today is 09 Mar 2025, 00:00:00.000000\n")
    assert supervised(encoder, TWO) == ["yes<|im_end|>", "no<|im_end|>"]


def test_a_date_does_not_change_while_an_encoder_lives(monkeypatch):
    monkeypatch.setattr(templates, "today", lambda: "2025-03-09")
    encoder = encoder_for(DATED)
    monkeypatch.setattr(templates, "today", lambda: "2025-03-10")
    assert text_of(encoder, TWO).startswith("Today is 09 Mar 2025")


@pytest.mark.parametrize("start", ["", "\n", "\n\n", "x"])
def test_a_date_leaves_the_rest_of_the_text_as_it_is(start):
    dated = encoder_for(start + "{% if false %}{{ strftime_now('%d') }}{% endif %}" + CHATML)
    assert text_of(dated, TWO) == text_of(
        encoder_for(start + "{% if 1 %}{% endif %}" + CHATML), TWO
    )


def test_generation_blocks_are_supervised():
    encoder = encoder_for(MARKED)
    mask = encoder.tokenizer.apply_chat_template(
        TWO, return_assistant_tokens_mask=True, return_dict=True
    )["assistant_masks"]
    labels = encoder.encode(TWO).labels
    assert [int(label >= 0) for label in labels] == mask
    one = Conversation(messages=TWO, supervised=[False, False, False, True])
    assert supervised(encoder, one) == ["no<|im_end|>\n"]


def test_a_header_inside_a_generation_block_is_not_supervised():
    header = "{{ '<|im_start|>' + m['role'] + '\n' }}"
    within = MARKED.replace(header, "").replace("{{ m['content']", header + "{{ m['content']")
    assert supervised(encoder_for(within), TWO) == ["yes<|im_end|>\n", "no<|im_end|>\n"]


def test_a_turn_without_a_generation_block_is_found_by_its_text():
    partly = MARKED.replace("{% if m['role'] == 'assistant' %}", "{% if loop.index == 4 %}")
    assert supervised(encoder_for(partly), TWO) == ["yes<|im_end|>", "no<|im_end|>\n"]


def test_variables_of_the_row_reach_the_template():
    template = "{% if brief %}{{ 'Be brief.\n' }}{% endif %}" + CHATML
    encoder = encoder_for(template)
    assert text_of(encoder, varied(brief=True)).startswith("Be brief.\n")
    prompt = encoder.tokenizer.decode(encoder.encode_prompt(varied(brief=True)))
    assert prompt.startswith("Be brief.\n")


@pytest.mark.parametrize("name", ["chat_template", "add_generation_prompt", "messages", "tokenize"])
def test_a_row_cannot_set_what_the_encoder_sets(name):
    with pytest.raises(InputError, match=f"variable {name}, which is reserved"):
        encoder_for(CHATML).encode(varied(**{name: "{{ 'x' }}"}))


def test_the_template_for_tools_or_documents_is_used_if_the_tokenizer_has_one():
    tools, documents = (
        f"{{{{ 'For {name}: ' ~ {name} }}}}" + CHATML for name in ("tools", "documents")
    )
    encoder = encoder_for({"default": CHATML, "tool_use": tools, "rag": documents})
    tool = {"type": "function", "function": {"name": "add", "description": "Adds."}}
    assert text_of(encoder, varied(tools=[tool])).startswith("For tools")
    assert text_of(encoder, varied(documents=[{"title": "T", "text": "x"}])).startswith(
        "For documents"
    )
    assert text_of(encoder, TWO) == text_of(encoder_for(CHATML), TWO)


def test_a_templates_identity_changes_with_everything_that_changes_tokens():
    tokenizer = make_tokenizer(CHATML)
    first = templates.identity(tokenizer)
    assert first == templates.identity(make_tokenizer(CHATML))
    tokenizer("x" * 9, truncation=True, max_length=2)  # the tokenizer keeps this setting
    assert first == templates.identity(tokenizer)
    others = [
        make_tokenizer(LLAMA3),
        make_tokenizer(CHATML, eos="<|eot_id|>"),
        make_tokenizer(CHATML, added=["<|turn_end|>"]),
        make_tokenizer(CHATML, trim_offsets=True),
    ]
    assert len({first, *map(templates.identity, others)}) == 5


def test_a_tokenizer_without_a_template_has_the_identity_of_the_plain_template():
    bare = make_tokenizer(None)
    plain = copy.copy(bare)
    ChatEncoder(plain, max_tokens=9)
    assert templates.identity(bare) == templates.identity(plain)
