"""Messages: which are trained on, what their keys mean, and under which names they come."""

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_files import HI, ROW, lines, read, write

from g2is_ray.data.reading import Example, read_examples

pytestmark = pytest.mark.usefixtures("empty_folder")

ASK, ANSWER = HI


def conversation(row, **options):
    (example,) = read("pool.jsonl", lines(row), **options)
    assert isinstance(example, Example), example.reason
    return example.conversation


def reason(row):
    (rejected,) = read("pool.jsonl", lines(row))
    return rejected.reason


def learned(row, **options):
    """Contents of the turns that are trained on."""
    found = conversation(row, **options)
    pairs = zip(found.messages, found.supervised, strict=True)
    return [message["content"] for message, supervised in pairs if supervised]


def two_answers(**first):
    wrong = {"role": "assistant", "content": "wrong", **first}
    return {"messages": [ASK, wrong, ASK, {**ANSWER, **dict.fromkeys(first)}]}


# Which turns are trained on


@pytest.mark.parametrize("value", [0, 0.0, False, "0", "false", " False "])
@pytest.mark.parametrize(
    "key", ["weight", "train", "training", "trainable", "loss", "loss_mask", "loss_scale"]
)
def test_a_turn_that_is_not_to_be_trained_on_is_context(key, value):
    row = two_answers(**{key: value})
    assert learned(row) == ["yes"]
    assert conversation(row).messages == [ASK, {**ANSWER, "content": "wrong"}, ASK, ANSWER]


@pytest.mark.parametrize("key", ["is_masked", "masked", "ignore_loss"])
def test_a_masked_turn_is_context(key):
    assert learned(two_answers(**{key: True})) == ["yes"]
    assert learned(two_answers(**{key: False})) == ["wrong", "yes"]


@pytest.mark.parametrize("value", [1, 1.0, True, "true", None])
def test_a_turn_that_is_to_be_trained_on_is(value):
    assert learned(two_answers(weight=value, train=value)) == ["wrong", "yes"]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"weight": 0.5}, "messages[1].weight is 0.5; only yes or no"),
        ({"weight": 2}, "messages[1].weight is a number; only yes or no"),
        ({"loss_mask": [0, 1]}, "loss_mask is a list; only yes or no"),
        ({"weight": 1, "train": False}, "weight and train disagree"),
        ({"train_detail": [{"train": False}]}, "train_detail trains on a part"),
        ({"mask": 1}, "mask may mean"),
    ],
)
def test_a_flag_that_cannot_be_honored_rejects_the_row(keys, problem):
    assert problem in reason(two_answers(**keys))


def test_a_row_without_a_turn_to_train_on_is_rejected():
    row = {"messages": [ASK, {**ANSWER, "weight": 0}]}
    assert reason(row) == "no assistant turn is to be trained on, as the row itself says"


def test_an_empty_answer_is_context():
    empty = {"role": "assistant", "content": " "}
    assert learned({"messages": [ASK, empty, ASK, ANSWER]}) == ["yes"]


def test_the_last_turn_alone_can_be_trained_on():
    assert learned(two_answers(), supervise="last") == ["yes"]
    row = two_answers()
    row["messages"][3] = {**ANSWER, "weight": 0}
    assert learned(row, supervise="last") == ["wrong"]


def test_answers_in_a_prompt_are_context():
    earlier = {"role": "assistant", "content": "earlier"}
    for prompt in ([ASK, earlier, ASK], json.dumps([ASK, earlier, ASK])):
        assert learned({"prompt": prompt, "completion": [ANSWER]}) == ["yes"]
        assert learned({"prompt": prompt, "completion": "done"}) == ["done"]


# Names of roles and keys


@pytest.mark.parametrize(
    ("names", "role"),
    [
        (["user", "human", "prompter", "Human", "USER", " user "], "user"),
        (["assistant", "gpt", "chatgpt", "bing", "bard", "model", "AI", "GPT-4"], "assistant"),
        (["system", "developer", "System"], "system"),
        (["tool", "function", "observation", "tool_response"], "tool"),
    ],
)
@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value"), ("role", "text")])
def test_roles_and_keys_are_told_from_the_turn(names, role, column, keys):
    turns = [dict(zip(keys, (name, "x"), strict=True)) for name in names]
    row = {column: [*turns, ANSWER]}
    assert [one["role"] for one in conversation(row).messages[:-1]] == [role] * len(names)


def test_keys_may_differ_from_turn_to_turn():
    row = {"messages": [{"from": "human", "value": "hi"}, ANSWER]}
    assert conversation(row).messages == HI


def test_two_names_of_one_thing_must_agree():
    turn = {"role": "user", "from": "human", "content": "hi", "value": "hi"}
    assert conversation({"messages": [turn, ANSWER]}).messages == HI
    assert "'content' and 'value', which differ" in reason(
        {"messages": [turn | {"value": "ho"}, ANSWER]}
    )
    assert "'role' and 'from', which differ" in reason(
        {"messages": [turn | {"from": "gpt"}, ANSWER]}
    )


def test_a_conversation_without_an_answer_names_its_roles():
    turns = [ASK, {"role": "alice", "content": "x"}, ASK]
    assert reason({"messages": turns}).endswith("its roles are 'user', 'alice'")


TURNS = {
    "JSON text": json.dumps(HI),
    "JSON text of each": [json.dumps(one) for one in HI],
    "lists of keys": {"role": ["user", "assistant"], "content": ["hi", "yes"]},
    "pairs": [list(one.items()) for one in HI],
}


@pytest.mark.parametrize("turns", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_turns_are_read_however_json_holds_them(turns, column):
    assert conversation({column: turns}).messages == HI


TABLES = {
    "text": (json.dumps(HI), pa.string()),
    "bytes": (json.dumps(HI).encode(), pa.binary()),
    "maps": ([list(one.items()) for one in HI], pa.list_(pa.map_(pa.string(), pa.string()))),
    "lists": (
        TURNS["lists of keys"],
        pa.struct([("role", pa.list_(pa.string())), ("content", pa.list_(pa.string()))]),
    ),
    "bytes in turns": (
        [{"role": b"user", "content": b"hi"}, {"role": b"assistant", "content": b"yes"}],
        pa.list_(pa.struct([("role", pa.binary()), ("content", pa.binary())])),
    ),
}


@pytest.mark.parametrize(("turns", "kind"), TABLES.values(), ids=TABLES)
def test_turns_are_read_however_parquet_holds_them(turns, kind):
    pq.write_table(pa.table({"messages": pa.array([turns], kind)}), "pool.parquet")
    (example,) = read("pool.parquet")
    assert example.messages == HI
    (again,) = read("selected.jsonl", example.record.encode())  # as a selection is written
    assert again.messages == HI


def test_a_row_that_is_json_twice_is_read():
    (example,) = read("pool.jsonl", lines(json.dumps(ROW)))
    assert example.messages == HI
    assert json.loads(example.record) == ROW


def test_half_a_surrogate_pair_in_json_text_rejects_the_row():
    text = '[{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "x"}]'
    assert "is a string, not a list of messages" in reason({"messages": text})


# What a template may read beside role and content


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_handed_to_the_template(key):
    row = {"messages": [ASK, {**ANSWER, key: "because"}]}
    assert conversation(row).messages[1] == {**ANSWER, "reasoning_content": "because"}


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
BARE = CALL["function"]
TEXT = {"name": "weather", "arguments": json.dumps(BARE["arguments"])}

CALLS = {
    "a template's": {"tool_calls": [CALL]},
    "OpenAI's": {"tool_calls": [{"type": "function", "function": TEXT}]},
    "OpenAI's older": {"function_call": TEXT},
    "bare": {"tool_calls": [BARE]},
    "JSON text": {"function_calls": json.dumps([BARE])},
    "both names": {"tool_calls": [CALL], "function_call": TEXT},
    "with nulls": {"tool_calls": [{**CALL, "id": None, "function": {**TEXT, "strict": None}}]},
}


@pytest.mark.parametrize("keys", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("content", ["", None, "Let me see."])
def test_calls_are_handed_to_the_template_and_trained_on(keys, content):
    found = conversation({"messages": [ASK, {"role": "assistant", "content": content, **keys}]})
    assert found.messages[1] == {
        "role": "assistant",
        "content": content or "",
        "tool_calls": [CALL],
    }
    assert found.supervised == [False, True]


def test_a_call_keeps_its_id_and_its_answer_names_it():
    call = {"role": "assistant", "tool_calls": [{**CALL, "id": "c1"}]}
    reply = {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "weather"}
    found = conversation({"messages": [ASK, call, reply, ANSWER]}).messages
    assert found[1]["tool_calls"] == [{**CALL, "id": "c1"}]
    assert found[2] == reply


def test_a_message_of_role_function_call_is_the_assistants():
    turns = [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": json.dumps(TEXT)},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "yes"},
    ]
    found = conversation({"conversations": turns})
    assert found.messages == [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "3"},
        ANSWER,
    ]
    assert found.supervised == [False, True, False, True]


def test_calls_one_after_another_are_one_turn():
    call = {"role": "tool_call", "content": json.dumps(BARE)}
    found = conversation({"messages": [ASK, call, call]})
    assert found.messages[1:] == [{"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}]


def test_a_call_keeps_what_was_thought_before_it():
    call = {"role": "tool_call", "content": json.dumps(BARE), "thinking": "Look."}
    found = conversation({"messages": [ASK, call, {**ANSWER, "weight": ""}]})
    assert found.messages[1]["reasoning_content"] == "Look."
    assert found.messages[1]["tool_calls"] == [CALL]
    assert found.supervised == [False, True, True]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"tool_calls": [{"id": "1"}]}, "a call without the name of a function"),
        ({"function_call": "weather(Oslo)"}, "is a string where a function belongs"),
        ({"function_call": {"name": "f", "arguments": "x=1"}}, "arguments are a string"),
        ({"functions": [BARE]}, "defines tools; put them into the column"),
        ({"refusal": "I cannot"}, "refusal holds what the assistant said"),
        ({"images": ["a.png"]}, "images is not text"),
        ({"channel": "analysis"}, "of the channel 'analysis'; put it into reasoning_content"),
        ({"reasoning": "a", "thinking": "b"}, "reasoning_content under two names, which differ"),
    ],
)
def test_what_cannot_be_handed_on_rejects_the_row(keys, problem):
    assert problem in reason({"messages": [ASK, {**ANSWER, **keys}]})


# What is ignored


def warnings(caplog, rows):
    caplog.set_level(logging.WARNING, "g2is_ray")
    caplog.clear()
    write("pool.jsonl", lines(*rows))
    assert all(isinstance(one, Example) for one in read_examples(["pool.jsonl"]))
    return [record.message for record in caplog.records]


def test_an_unknown_key_of_a_message_is_counted_and_said_once(caplog):
    odd = {"messages": [ASK, {**ANSWER, "mood": "glad", "id": 7, "timestamp": 3}]}
    (said,) = warnings(caplog, [ROW, odd, ROW, odd])
    assert said.startswith("pool.jsonl: 2 rows have something that is ignored: the message key")
    assert "'mood' (first pool.jsonl:2)" in said


def test_keys_without_a_value_are_not_spoken_of(caplog):
    nulls = {"mood": None, "weight": None, "tool_calls": [], "reasoning": "", "train_detail": []}
    assert not warnings(caplog, [{"messages": [ASK, {**ANSWER, **nulls}]}])


def test_training_on_a_question_is_said_not_to_happen(caplog):
    (said,) = warnings(caplog, [{"messages": [{**ASK, "train": True}, ANSWER]}])
    assert "turns other than the assistant's" in said


def test_any_number_of_unknown_keys_is_counted_in_bounded_memory(caplog):
    rows = [{"messages": [ASK, {**ANSWER, f"key {i}": 1}]} for i in range(50)]
    said = warnings(caplog, rows)
    assert len(said) == 21
    assert "30 rows have something that is ignored: further" in said[-1]
