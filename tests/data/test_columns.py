"""Columns beside a schema's own: honored, refused, or said to be ignored."""

import json
import logging

import pytest
from raw_files import HI, ROW, lines, read

from g2is_ray.data.reading import Example

pytestmark = pytest.mark.usefixtures("empty_folder")

ALPACA = {"instruction": "hi", "output": "yes"}
PAIR = {"prompt": "hi", "completion": "yes"}
SHAREGPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}
ROWS = [ROW, ALPACA, PAIR, SHAREGPT]

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def conversation(row):
    (example,) = read("pool.jsonl", lines(row))
    assert isinstance(example, Example), example.reason
    return example.conversation


def reason(row):
    (rejected,) = read("pool.jsonl", lines(row))
    return rejected.reason


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_is_the_first_message(row, column):
    found = conversation({**row, column: "Be brief."})
    assert found.messages == [{"role": "system", "content": "Be brief."}, *HI]
    assert found.supervised == [False, False, True]
    assert conversation({**row, column: " "}).messages == HI


def test_a_system_column_and_a_system_message_must_agree():
    row = {"messages": [{"role": "system", "content": "Be brief."}, *HI]}
    assert conversation({**row, "system": "Be brief."}).messages == row["messages"]
    assert "different system messages" in reason({**row, "system": "Be long."})


@pytest.mark.parametrize("pack", [json.dumps, lambda value: value])
@pytest.mark.parametrize("history", [[["a", "b"]], [{"role": "user", "content": "a"}, "b"][:1]])
def test_history_comes_before_the_question(history, pack):
    found = conversation({**ALPACA, "history": pack(history), "system": "s"})
    contents = [message["content"] for message in found.messages]
    assert contents in (["s", "a", "b", "hi", "yes"], ["s", "a", "hi", "yes"])


def test_answers_of_a_history_are_trained_on_unless_they_are_part_of_a_prompt():
    history = [["a", "b"]]  # LLaMA-Factory trains on them, TRL on completions only
    assert conversation({**ALPACA, "history": history}).supervised == [False, True, False, True]
    assert conversation({**PAIR, "history": history}).supervised == [False, False, False, True]


def test_a_history_beside_messages_is_refused():
    assert "history beside its messages" in reason({**ROW, "history": [["a", "b"]]})
    assert conversation({**ROW, "history": []}).messages == HI


TOOLS = {
    "a template's": {"tools": [TOOL]},
    "JSON text": {"tools": json.dumps([TOOL])},
    "each as JSON text": {"tools": [json.dumps(TOOL)]},
    "LLaMA-Factory's": {"tools": json.dumps([TOOL["function"]])},
    "OpenAI's older": {"functions": [TOOL["function"]]},
    "with nulls": {"tools": [{**TOOL, "strict": None}]},
}


@pytest.mark.parametrize("columns", TOOLS.values(), ids=TOOLS)
@pytest.mark.parametrize("row", ROWS)
def test_tools_are_handed_to_the_template(columns, row):
    assert conversation({**row, **columns}).template == {"tools": [TOOL]}


@pytest.mark.parametrize("nothing", [None, "", "[]", "null", []])
def test_tools_that_are_none_are_none(nothing):
    assert conversation({**ROW, "tools": nothing}).template == {}


@pytest.mark.parametrize("pack", [json.dumps, lambda value: value])
def test_template_variables_are_handed_to_the_template(pack):
    given = {"enable_thinking": False, "date": "today", "unset": None}
    found = conversation({**ROW, "chat_template_kwargs": pack(given), "tools": [TOOL]}).template
    assert found == {"enable_thinking": False, "date": "today", "tools": [TOOL]}
    assert conversation({**ROW, "enable_thinking": True}).template == {"enable_thinking": True}


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"tools": "weather: tells the weather"}, "tools is a string where a function belongs"),
        ({"tools": [{"description": "x"}]}, "a tool without the name of a function"),
        ({"tools": [TOOL], "functions": [{"name": "other"}]}, "defines tools twice"),
        ({"chat_template_kwargs": "fast"}, "chat_template_kwargs is a string, not an object"),
        ({"chat_template_kwargs": {"tokenize": True}}, "may not set 'tokenize'"),
        ({"chat_template_kwargs": {"messages": []}}, "may not set 'messages'"),
        ({"system": 1.5}, "system is a number, not text"),
        ({"label": False}, "label is false, which marks an answer not to be imitated"),
        ({"label": "False"}, "label is false"),
        ({"kto_tag": False}, "kto_tag is false"),
        ({"rejected": [HI[1]]}, "column rejected: preference data"),
        ({"rejected_response": "no"}, "column rejected_response: preference data"),
        ({"images": ["a.png"]}, "column images, and only text"),
        ({"tool_calls": [{"name": "f"}]}, "column tool_calls; put its calls"),
        ({"function_call": "{}x"}, "column function_call; put its calls"),
        ({"weight": 0}, "weight is 0, so the row is not to be trained on"),
        ({"train": False}, "train is False, so the row is not to be trained on"),
        ({"loss_mask": [0, 1]}, "a list loss_mask; put a flag into each message"),
    ],
)
@pytest.mark.parametrize("row", ROWS)
def test_what_cannot_be_honored_rejects_the_row(row, columns, problem):
    assert problem in reason({**row, **columns})


def test_answers_marked_as_good_are_read():
    assert conversation({**PAIR, "label": True}).messages == HI


def test_a_chosen_conversation_that_is_the_messages_is_read():
    row = {**ROW, "prompt": "hi", "chosen": HI, "rejected": [HI[0]]}  # as UltraFeedback has it
    assert conversation(row).messages == HI


def test_columns_that_mean_something_elsewhere_are_said_to_be_ignored(caplog):
    caplog.set_level(logging.WARNING, "g2is_ray")
    used = {"id": 1, "source": "a", "metadata": {"x": 1}, "score": 0.5, "weight": 1, "label": "x"}
    assert conversation({**ALPACA, **used})
    assert not caplog.records
    assert conversation({**ALPACA, "context": "Read this.", "weight": 0.5})
    said = [record.message for record in caplog.records]
    assert any("1 rows have something that is ignored: the column 'context'" in s for s in said)
    assert any("the column 'weight' (first pool.jsonl:1)" in s for s in said)


# Texts


@pytest.mark.parametrize("mark", ["<noinput>", "<noInput> ", "<no input>", "", None])
def test_an_input_that_says_there_is_none_is_none(mark):
    assert conversation({**ALPACA, "input": mark}).messages == HI


def test_whole_numbers_are_texts():
    found = conversation({"instruction": "1 + 1?", "input": 7, "output": 2}).messages
    assert [one["content"] for one in found] == ["1 + 1?\n\n7", "2"]


def test_each_row_is_of_the_schema_of_its_own_columns():
    nulls = {"messages": None, "instruction": None, "output": None}
    rows = [ROW, ALPACA, {**nulls, **ALPACA}, {**nulls, **SHAREGPT}, PAIR]
    assert [one.messages for one in read("pool.jsonl", lines(*rows))] == [HI] * 5
