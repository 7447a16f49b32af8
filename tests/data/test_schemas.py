"""Schemas: examples from rows of every schema, and what happens to broken rows."""

import gzip
import json
import re

import pytest
from raw_files import HI, ROW, lines, read, write

from g2is_ray.chat.conversation import Conversation
from g2is_ray.data import json_rows, schemas
from g2is_ray.data.reading import Example, Rejected, read_examples
from g2is_ray.errors import InputError, SettingError

pytestmark = pytest.mark.usefixtures("empty_folder")


def reasons(*rows, **options):
    """Reasons for rejecting rows, which stand between two good ones."""
    first, *found, last = read("pool.jsonl", lines(ROW, *rows, ROW), **options)
    assert isinstance(first, Example)
    assert isinstance(last, Example)
    assert all(isinstance(one, Rejected) for one in found)
    return [one.reason for one in found]


def messages_of(row, **options):
    (example,) = read("pool.jsonl", lines(row), **options)
    return example.messages


def contents_of(row, **options):
    return [(turn["role"], turn["content"]) for turn in messages_of(row, **options)]


# Fields of an example


def test_an_example_carries_everything_about_its_row():
    row = {"id": "a1", "source": "gsm8k", "messages": HI, "answer": "é 72", "extra": [1]}
    (example,) = read("data/pool.jsonl", lines(row))
    assert example == Example(
        id="a1",
        conversation=Conversation.of(HI),
        group="gsm8k",
        answer="é 72",
        record=json.dumps(row, ensure_ascii=False),
        file="data/pool.jsonl",
        line=1,
    )


@pytest.mark.parametrize(
    ("own", "id"),
    [("x", "x"), (7, "7"), (0, "0"), ("", None), (None, None), (True, None), ([1], None)],
)
def test_an_id_is_the_rows_own_or_its_place(own, id):
    (example,) = read("pool.jsonl", lines({**ROW, "id": own}))
    assert example.id == (id or "pool.jsonl:1")


@pytest.mark.parametrize(
    ("own", "answer"), [("72", "72"), (72, "72"), (0.5, "0.5"), (None, None), ([72], None)]
)
def test_an_answer_is_text_or_a_number(own, answer):
    (example,) = read("pool.jsonl", lines({**ROW, "answer": own}))
    assert example.answer == answer


def test_the_group_comes_from_the_named_column_or_the_files_stem():
    row = {**ROW, "source": "a", "domain": 3}
    assert read("x/pool.jsonl", lines(row))[0].group == "a"
    assert read("x/pool.jsonl", source_field="domain")[0].group == "3"
    assert read("x/pool.jsonl", source_field="none")[0].group == "pool"
    assert read("x/my.pool.jsonl.gz", gzip.compress(lines(ROW)))[0].group == "my.pool"


def test_keys_of_a_message_beyond_role_and_content_are_dropped_from_messages_only():
    turns = [HI[0], {**HI[1], "weight": 1}]
    (example,) = read("pool.jsonl", lines({"messages": turns}))
    assert example.messages == HI
    assert json.loads(example.record) == {"messages": turns}


# Schemas


def test_messages_keep_their_roles():
    turns = [{"role": "system", "content": "s"}, *HI, {"role": "tool", "content": "42"}]
    assert messages_of({"messages": turns}) == turns


def test_prompt_and_completion_may_be_texts():
    row = {"prompt": "hi", "completion": "yes"}
    assert contents_of(row) == [("user", "hi"), ("assistant", "yes")]


def test_prompt_and_completion_may_be_messages():
    row = {"prompt": [{"role": "system", "content": "s"}, HI[0]], "completion": [HI[1]]}
    assert contents_of(row) == [("system", "s"), ("user", "hi"), ("assistant", "yes")]


@pytest.mark.parametrize("context", ["", "  ", None])
def test_alpaca_without_input_asks_the_instruction_alone(context):
    row = {"instruction": "add", "input": context, "output": "4"}
    assert contents_of(row) == [("user", "add"), ("assistant", "4")]


def test_alpaca_puts_the_input_below_the_instruction():
    row = {"instruction": "add", "input": "2, 2", "output": "4"}
    assert contents_of(row)[0] == ("user", "add\n\n2, 2")


def test_sharegpt_speakers_become_roles():
    speakers = ["system", "human", "gpt", "user", "assistant", "observation", "critic"]
    turns = [{"from": speaker, "value": "x"} for speaker in speakers]
    roles = [turn["role"] for turn in messages_of({"conversations": turns})]
    assert roles == ["system", "user", "assistant", "user", "assistant", "tool", "critic"]


def test_contents_in_parts_are_joined_if_all_are_text():
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    row = {"messages": [{"role": "user", "content": parts}, HI[1]]}
    assert messages_of(row) == HI


def test_each_file_has_a_schema_of_its_own():
    write("a.jsonl", lines(ROW))
    write("b.jsonl", lines({"instruction": "hi", "output": "yes"}))
    assert [one.messages for one in read_examples(["a.jsonl", "b.jsonl"])] == [HI, HI]


def test_the_schema_is_told_by_the_first_row_that_parses():
    found = read("pool.jsonl", lines(b"{", {"prompt": "hi", "completion": "yes"}))
    assert isinstance(found[0], Rejected)
    assert found[1].messages == HI


def test_messages_go_before_a_column_prompt():
    row = {"prompt": "x", "completion": "y", **ROW}
    assert messages_of(row) == HI
    assert contents_of(row, format="prompt-completion") == [("user", "x"), ("assistant", "y")]


def test_an_unknown_schema_is_refused_with_the_columns_and_the_choices():
    with pytest.raises(InputError) as caught:
        read("pool.jsonl", lines({"question": "a", "reply": "b"}))
    for part in ["pool.jsonl", "'question', 'reply'", *schemas.SCHEMAS]:
        assert part in str(caught.value)


def test_an_unknown_format_is_refused_at_the_call():
    with pytest.raises(SettingError, match="'chat' is not known; choose one of auto, messages"):
        read_examples([], format="chat")


# Rows that are rejected, while reading goes on


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"messages": [', "is not JSON"),
        (b"nothing", "is not JSON .* at column 1"),
        (b'{"a": 1} {"b": 2}', "several JSON values are on one line"),
        (b'{"a": 1},', "is not JSON .*Extra data"),
        (b'{"messages": "\xff\xfe"}', "byte 15 of the line is not UTF-8"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be parsed"),
        ([1, 2], "is a list, not a JSON object"),
        (b"null", "is null, not a JSON object"),
        ("text", "is a string, not a JSON object"),
        ({}, "'messages' is missing"),
        ({"messages": None}, "messages is null, not a list"),
        ({"messages": "hi"}, "messages is a string, not a list"),
        ({"messages": []}, "messages is an empty list"),
        ({"messages": ["hi"]}, r"messages\[0\] is a string, not an object"),
        ({"messages": [HI[0], {"role": "assistant"}]}, r"messages\[1\] has no 'content'"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] has no 'role'"),
        ({"messages": [{"role": 3, "content": "x"}]}, r"role is a number, not the name"),
        ({"messages": [{"role": "", "content": "x"}]}, r"role is an empty string"),
        ({"messages": [HI[0], {"role": "assistant", "content": 7.5}]}, "number, not text; write"),
        ({"messages": [HI[0], {"role": "assistant", "content": True}]}, "boolean, not text; write"),
        ({"messages": [HI[0], {"role": "assistant", "content": None}]}, "is null, not text"),
        ({"messages": [HI[0]]}, "no assistant turn; its roles are 'user'"),
        ({"messages": [HI[0], {"role": "assistant", "content": " \n"}]}, "turn is empty"),
        ({"messages": [HI[0], {**HI[1], "tool_calls": [{"id": 1}]}]}, "without the name"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', r"'\\ud83d' has no UTF-8"),
        (b'{"x": {"\\ude00": 1}, "messages": []}', r"'\\ude00' has no UTF-8"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(row, reason):
    (found,) = reasons(row)
    assert re.search(reason, found)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "image", "url": "x"}, "a part that is not text but 'image'"),
        ("hi", "a part that is not text but 'a string'"),
        ({"type": "text"}, "a text part without text"),
    ],
)
def test_contents_with_other_parts_than_text_are_rejected(part, reason):
    content = [{"type": "text", "text": "look"}, part]
    (found,) = reasons({"messages": [{"role": "user", "content": content}, HI[1]]})
    assert reason in found


@pytest.mark.parametrize(
    ("format", "row", "reason"),
    [
        ("alpaca", {"instruction": "a"}, "'output' is missing, which the schema alpaca needs"),
        ("alpaca", {"instruction": "a", "input": 1.5, "output": "b"}, "input is a number"),
        ("prompt-completion", {"prompt": {}, "completion": "x"}, "prompt is an object, not text"),
        ("prompt-completion", {"prompt": "x", "completion": ""}, "turn is empty"),
        ("prompt-completion", {"prompt": "x", "completion": [HI[0]]}, "no assistant turn"),
        ("sharegpt", {"conversations": [{"from": "gpt"}]}, "conversations[0] has no 'content'"),
        ("messages", {"prompt": "x", "completion": "y"}, "'messages' is missing"),
    ],
)
def test_a_bad_row_of_each_schema_is_rejected(format, row, reason):
    (found,) = read("pool.jsonl", lines(row), format=format)
    assert reason in found.reason


def test_a_rejected_row_carries_its_place_and_text():
    found = read("pool.jsonl", lines(ROW, b"", b"{oops"))[1]
    assert (found.file, found.line, found.text) == ("pool.jsonl", 3, "{oops")


def test_a_rejected_rows_text_is_cut_and_can_be_written():
    rows = [b"x" * 5000, {"messages": "x" * 5000}, b'"\\ud800"', b"\xff" + b"x" * 5000]
    for found in read("pool.jsonl", lines(*rows)):
        assert 0 < len(found.text) <= 2000
        found.text.encode()


@pytest.mark.parametrize("newline", [b"\n", b""])
def test_an_enormous_line_is_rejected_without_being_held(newline, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 1000)
    long = b'{"messages": "' + b"x" * 5_000_000 + newline
    found = read("pool.jsonl", lines(ROW) + long + (lines(ROW) if newline else b""))
    assert found[1].reason.startswith("the line is longer than")
    assert [one.line for one in found] == ([1, 2, 3] if newline else [1, 2])


def test_a_line_of_exactly_the_limit_is_read(monkeypatch):
    line = lines(ROW)
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", len(line))
    assert isinstance(read("pool.jsonl", line * 2)[1], Example)
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", len(line) - 1)
    assert [one.line for one in read("pool.jsonl", line * 2)] == [1, 2]


# Odd but good text


def test_control_characters_are_read():
    raw = b'{"messages": [{"role":"user","content":"a\\u0000b\tc\x01"},'
    raw += b'{"role":"assistant","content":"\xe2\x80\xa8yes\xc2\x85"}]}'
    (example,) = read("pool.jsonl", raw)
    assert example.messages[0]["content"] == "a\0b\tc\x01"
    assert example.messages[1]["content"] == "\u2028yes\x85"


def test_surrogate_pairs_are_one_character():
    (example,) = read("pool.jsonl", lines({"messages": [{**HI[1], "content": "🙂"}]}))
    assert example.messages[0]["content"] == "🙂"
    assert "🙂" in example.record


def test_a_record_is_always_json():
    raw = b'{"a": NaN, "b": [-Infinity, 1e999, 1.5], "messages": ' + json.dumps(HI).encode() + b"}"
    (example,) = read("pool.jsonl", raw)
    assert json.loads(example.record, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, None, 1.5],
        "messages": HI,
    }


def test_byte_order_mark_carriage_returns_and_blank_lines_are_no_rows():
    data = b"\xef\xbb\xbf" + lines(ROW).replace(b"\n", b"\r\n") + b"\r\n  \n" + lines(ROW)
    assert [one.line for one in read("pool.jsonl", data)] == [1, 4]
