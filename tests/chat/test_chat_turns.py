"""Turns: supervised spans under templates of all kinds, and refusal of dropped messages."""

import pytest
from chat_kinds import CHATML, THINKING, conversation, encoder_for, make_tokenizer, supervised
from hypothesis import given
from hypothesis import strategies as st

from g2is_ray.chat.conversation import Conversation
from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.errors import InputError

TWO = conversation("a", "yes", "b", "no")
HARMONY = (  # the last turn has another end token, and a channel is part of a turn
    "{% for m in messages %}{{ '<|start|>' + m['role'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|channel|>final' }}{% endif %}"
    "{{ '<|message|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' and loop.last and not add_generation_prompt %}"
    "{{ '<|return|>' }}{% else %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
FINAL = "<|channel|>final<|message|>"
NO_PROMPT = CHATML[: CHATML.index("{% if add_generation_prompt")]
ALWAYS_PROMPT = NO_PROMPT + "{{ '<|im_start|>assistant\n' }}"
KNOWN_ROLES = CHATML.replace(
    "{{ '<|im_start|>' +",
    "{% if message['role'] in ['system', 'user', 'assistant'] %}{{ '<|im_start|>' +",
).replace("'\n' }}{% endfor", "'\n' }}{% endif %}{% endfor")
NEXT_ROLE_ENDS = (  # as in GLM: generation stops at the token that begins the next turn
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
OPEN_LAST = (  # as in Yi and InternLM: the last turn is closed only if the conversation goes on
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% if not loop.last or add_generation_prompt %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CUTS = (  # as in DeepSeek-R1: reasoning is cut from every answer, and the prompt begins it
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'].split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
PROMPT_THINKS = (  # as in Qwen3.5: the prompt begins the turn's reasoning
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{{ '<think>\n' + m.get('reasoning_content', '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
CALLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for call in m.get('tool_calls', []) %}{{ '<tool_call>' + call['function']['name'] }}"
    "{{ call['function']['arguments'] | tojson + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARTS = (  # as in SmolVLM: content has to be a list of parts
    "{% for m in messages %}{{ m['role'] + ':\n' }}{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "of": "two"}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}


def with_calls(*, tools=None):
    messages = [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "4", "name": "add"},
        {"role": "assistant", "content": "four"},
    ]
    plain = Conversation.of(messages)
    variables = {"tools": tools} if tools else {}
    return Conversation(messages=messages, supervised=plain.supervised, template=variables)


# Starts and ends of turns


@pytest.mark.parametrize(
    ("template", "first", "last"),
    [
        (
            HARMONY,
            FINAL + "yes<|end|>",
            FINAL + "no<|return|>",
        ),
        (NO_PROMPT, "yes<|im_end|>", "no<|im_end|>"),
        (ALWAYS_PROMPT, "yes<|im_end|>", "no<|im_end|>"),
        (OPEN_LAST, "yes<|im_end|>", "no<|im_end|>"),
        (CHATML.replace("<|im_end|>", "<|turn_end|>"), "yes<|turn_end|>", "no<|turn_end|>"),
        (PROMPT_THINKS, "\n</think>\n\nyes<|im_end|>", "\n</think>\n\nno<|im_end|>"),
        (PARTS, "yes<|im_end|>", "no<|im_end|>"),
    ],
    ids=["harmony", "no-prompt", "always-prompt", "open-last", "text-end", "thinks", "parts"],
)
def test_a_turn_is_supervised_with_its_own_end_and_without_header(template, first, last):
    encoder = encoder_for(template)
    assert supervised(encoder, TWO) == [first, last]
    assert supervised(encoder, TWO[:2]) == [last.replace("no", "yes")]
    assert supervised(encoder, [*TWO, {"role": "user", "content": "c"}])[0] == first


def test_an_end_token_that_is_added_but_not_special_is_supervised():
    template = THINKING.replace("<|im_end|>", "<|turn_end|>")
    encoder = encoder_for(template, added=["<|turn_end|>"])
    assert supervised(encoder, TWO) == [
        "yes<|turn_end|>",
        "<think>\n\n</think>\n\nno<|turn_end|>",
    ]


def test_the_next_turns_first_token_is_supervised_where_generation_stops_at_it():
    ends = ["<|user|>", "<|tool|>"]
    encoder = encoder_for(NEXT_ROLE_ENDS, added=[*ends, "<|assistant|>"], end_tokens=ends)
    assert supervised(encoder, TWO) == ["yes<|user|>", "no<|user|>"]
    called = [*TWO[:2], {"role": "tool", "content": "4"}, *TWO[3:]]
    assert supervised(encoder, called) == ["yes<|tool|>", "no<|user|>"]


def test_the_end_that_a_template_leaves_open_is_added_once():
    encoder = encoder_for(OPEN_LAST)
    text = encoder.tokenizer.decode(encoder.encode(TWO[:2]).input_ids)
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"


def test_end_tokens_are_read_from_the_generation_config(tmp_path):
    tokenizer = make_tokenizer(NEXT_ROLE_ENDS, added=["<|user|>", "<|assistant|>"])
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer.convert_tokens_to_ids(["<|user|>"])
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {ids}}}')
    encoder = ChatEncoder(type(tokenizer).from_pretrained(tmp_path), max_tokens=99)
    assert supervised(encoder, TWO) == ["yes<|user|>", "no<|user|>"]


def test_a_header_token_that_swallows_blanks_of_the_answer_is_not_supervised():
    template = NEXT_ROLE_ENDS.replace("m['content'] }}", "m['content'] + '<|im_end|>' }}")
    encoder = encoder_for(template, swallowing=["<|user|>", "<|assistant|>"])
    assert supervised(encoder, conversation("a", "  yes", "b", "\nno")) == [
        "yes<|im_end|>",
        "no<|im_end|>",
    ]


def test_a_header_that_counts_rounds_is_followed():
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '[Round ' ~ (loop.index0 // 2 + 1) ~ ']\n\nQ: ' + m['content'] + '\n\nA:\n' }}"
        "{% else %}{{ m['content'] + '</s>\n' }}{% endif %}{% endfor %}"
    )
    messages = conversation(*["a", "yes"] * 11)
    assert supervised(encoder_for(template), messages) == ["yes</s>"] * 11


def test_the_number_of_renderings_does_not_grow_with_the_turns(monkeypatch):
    counts = []
    for turns in (4, 40):
        encoder = encoder_for(THINKING)
        render, rendered = encoder.template.render, []
        monkeypatch.setattr(
            encoder.template,
            "render",
            lambda *a, r=render, d=rendered, **k: d.append(1) or r(*a, **k),
        )
        encoder.encode(conversation(*["<think>hm</think>a", "<think>so</think>yes"] * turns))
        counts.append(len(rendered))
    assert counts[0] == counts[1] <= 12


def test_a_header_that_depends_on_how_the_message_begins_is_followed():
    template = (  # as in Qwen3: a user message with a tool's reply is rendered in another way
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}"
        "{% if m['content'].startswith('Result') %}{{ ' (tool)' }}{% endif %}"
        "{{ '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    messages = conversation("Result 4 of a tool", "yes", "b", "no")
    assert supervised(encoder_for(template), messages) == ["yes<|im_end|>", "no<|im_end|>"]


# Supervised turns


def test_only_turns_that_are_to_be_trained_on_are_supervised():
    last = Conversation(messages=TWO, supervised=[False, False, False, True])
    encoder = encoder_for(CHATML)
    assert supervised(encoder, last) == ["no<|im_end|>"]
    assert encoder.encode(last).input_ids == encoder.encode(TWO).input_ids


def test_a_prompt_ends_before_the_last_supervised_turn():
    encoder = encoder_for(CHATML)
    first = Conversation(messages=TWO, supervised=[False, True, False, False])
    assert encoder.encode_prompt(first) == encoder.encode_prompt(TWO[:2])


# Texts that the template drops


@pytest.mark.parametrize("role", ["developer", "observation", "function_call", "human"])
@pytest.mark.parametrize("place", [0, 2])
def test_a_message_that_the_template_drops_is_refused(role, place):
    messages = [*TWO[:place], {"role": role, "content": "READ THIS"}, *TWO[place:]]
    with pytest.raises(InputError, match=rf"drops message {place + 1} \({role}\)"):
        encoder_for(KNOWN_ROLES).encode(messages)


def test_a_blank_message_may_be_dropped():
    messages = [{"role": "developer", "content": " \n"}, *TWO]
    assert not encoder_for(KNOWN_ROLES).encode(messages).altered


@pytest.mark.parametrize("template", [CHATML, THINKING])
def test_blanks_around_a_text_may_be_trimmed(template):
    encoded = encoder_for(template).encode(conversation(" a\n", "\n yes ", "b", "no"))
    assert not encoded.altered


def test_reasoning_that_is_dropped_from_earlier_turns_counts_as_altered():
    encoder = encoder_for(THINKING)
    kept = conversation("a", "yes", "b", "<think>so</think>no")
    dropped = conversation("a", "<think>hm</think>yes", "b", "no")
    assert not encoder.encode(kept).altered
    assert encoder.encode(dropped).altered


def test_a_dropped_tag_counts_as_altered_unless_it_encloses_nothing():
    encoder = encoder_for(THINKING)
    assert encoder.encode(conversation("a", "</think>yes", "b", "no")).altered
    assert not encoder.encode(conversation("a", "<think>\n</think>yes", "b", "no")).altered


def test_a_changed_question_counts_as_altered():
    template = CHATML.replace(
        "message['content'] +", "message['content'] | replace('long', 'short') +"
    )
    assert encoder_for(template).encode(conversation("a long one", "yes")).altered


def test_an_answer_whose_reasoning_is_always_cut_is_supervised_in_full():
    answer = "<think>two and two</think>4"
    encoder = encoder_for(CUTS)
    assert encoder.encode(conversation("2+2?", answer)).altered
    assert supervised(encoder, conversation("2+2?", answer)) == [answer + "<|im_end|>"]
    assert (
        supervised(encoder, conversation("2+2?", answer, "b", answer))
        == [answer + "<|im_end|>"] * 2
    )


def test_reasoning_reaches_a_template_that_knows_it():
    messages = [TWO[0], {**TWO[1], "reasoning_content": "hm"}]
    assert supervised(encoder_for(PROMPT_THINKS), messages) == ["hm\n</think>\n\nyes<|im_end|>"]


def test_reasoning_reaches_a_template_that_calls_it_thinking():
    template = PROMPT_THINKS.replace("reasoning_content", "thinking")
    messages = [TWO[0], {**TWO[1], "reasoning_content": "hm"}]
    assert supervised(encoder_for(template), messages) == ["hm\n</think>\n\nyes<|im_end|>"]


def test_reasoning_that_the_template_ignores_is_refused():
    messages = [TWO[0], {**TWO[1], "reasoning_content": "hm"}, *TWO[2:]]
    with pytest.raises(InputError, match=r"ignores reasoning_content of message 2 \(assistant\)"):
        encoder_for(CHATML).encode(messages)
    context = Conversation(messages=messages, supervised=[False, False, False, True])
    assert encoder_for(CHATML).encode(context).altered


def test_calls_and_tools_reach_the_template():
    encoder = encoder_for(CALLS)
    found = with_calls(tools=[TOOL])
    assert supervised(encoder, found) == [
        '<tool_call>add{"a": 2, "of": "two"}</tool_call><|im_end|>',
        "four<|im_end|>",
    ]
    encoded = encoder.encode(found)
    assert "Adds." in encoder.tokenizer.decode(encoded.input_ids)
    assert not encoded.altered


def test_arguments_that_are_a_text_reach_a_template_that_wants_an_object():
    template = CALLS.replace("['arguments'] | tojson", "['arguments'].items() | list | tojson")
    messages = with_calls().messages
    text = {"function": {"name": "add", "arguments": '{"a": 2, "of": "two"}'}}
    messages[1] = {**messages[1], "tool_calls": [text]}
    assert "two" in supervised(encoder_for(template), messages)[0]


def test_arguments_that_are_an_object_reach_a_template_that_wants_a_text():
    template = CALLS.replace("['arguments'] | tojson", "['arguments']")
    assert '{"a": 2, "of": "two"}' in supervised(encoder_for(template), with_calls().messages)[0]


def test_calls_that_the_template_ignores_are_refused():
    with pytest.raises(InputError, match="tool_calls of message 2"):
        encoder_for(CHATML).encode(with_calls())


def test_tools_that_the_template_ignores_are_refused():
    variables = Conversation(messages=TWO, supervised=[False, True] * 2, template={"tools": [TOOL]})
    with pytest.raises(InputError, match="ignores tools"):
        encoder_for(CHATML).encode(variables)


# Generated templates and texts


@st.composite
def templates(draw):
    """A chat template and the token that ends its turns."""
    name = draw(st.sampled_from(["'<|im_start|>' + m['role'] + '\n'", "m['role'] + ': '"]))
    end = draw(st.sampled_from(["<|im_end|>", "<|turn_end|>", "</s>"]))
    gap = draw(st.sampled_from(["\n", "", "\n\n"]))
    content = draw(st.sampled_from(["m['content']", "m['content'] | trim"]))
    body = "{% for m in messages %}{{ " + name + " }}{{ " + content + " }}"
    prompt = "{% if add_generation_prompt %}{{ " + name.replace("m['role']", "'assistant'") + " }}"
    return body + "{{ " + repr(end + gap) + " }}{% endfor %}" + prompt + "{% endif %}", end


@pytest.mark.fuzz
@given(
    templates(),
    st.lists(st.text("ab<>|/é🙂 \n", min_size=1).filter(str.strip), min_size=2, max_size=6),
)
def test_exactly_the_answers_and_their_ends_are_supervised(template, texts):
    source, end = template
    messages = conversation(*texts[: len(texts) // 2 * 2])
    runs = supervised(encoder_for(source, added=["<|turn_end|>", "</s>"]), messages)
    found = [run.strip() for run in runs]
    assert found == [m["content"].strip() + end for m in messages[1::2]] or found == [
        m["content"].lstrip() + end for m in messages[1::2]
    ]
