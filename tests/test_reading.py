"""Reading: rows of every container and schema, and what happens to broken ones."""

import datetime
import gzip
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from g2is_ray import reading, schemas
from g2is_ray.errors import InputError, SettingError
from g2is_ray.reading import Example, Rejected, read_examples
from g2is_ray.sources import describe, expand

HI = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
ROW = {"messages": HI}


def lines(*rows):
    """JSON lines of rows; a row given as bytes stands as it is."""
    return b"".join(
        (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
    )


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, data):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def read(name, data=None, **options):
    if data is not None:
        write(name, data)
    return list(read_examples([name], **options))


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
        messages=HI,
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
    speakers = ["system", "human", "gpt", "user", "assistant", "observation"]
    turns = [{"from": speaker, "value": "x"} for speaker in speakers]
    roles = [turn["role"] for turn in messages_of({"conversations": turns})]
    assert roles == ["system", "user", "assistant", "user", "assistant", "observation"]


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
        (b'{"a": 1} {"b": 2}', "is not JSON .*Extra data"),
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
        ({"messages": [HI[0], {"role": "assistant", "content": 7}]}, "is a number, not text"),
        ({"messages": [HI[0], {"role": "assistant", "content": None}]}, "is null, not text"),
        ({"messages": [HI[0]]}, "no assistant turn"),
        ({"messages": [HI[0], {"role": "assistant", "content": " \n"}]}, "turn is empty"),
        ({"messages": [HI[0], {**HI[1], "tool_calls": [{"id": 1}]}]}, "calls tools"),
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
        ("alpaca", {"instruction": "a", "input": 1, "output": "b"}, "input is a number"),
        ("prompt-completion", {"prompt": {}, "completion": "x"}, "prompt is an object, not text"),
        ("prompt-completion", {"prompt": "x", "completion": ""}, "turn is empty"),
        ("prompt-completion", {"prompt": "x", "completion": [HI[0]]}, "no assistant turn"),
        ("sharegpt", {"conversations": [{"from": "gpt"}]}, "conversations[0] has no 'value'"),
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
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 1000)
    long = b'{"messages": "' + b"x" * 5_000_000 + newline
    found = read("pool.jsonl", lines(ROW) + long + (lines(ROW) if newline else b""))
    assert found[1].reason.startswith("the line is longer than")
    assert [one.line for one in found] == ([1, 2, 3] if newline else [1, 2])


def test_a_line_of_exactly_the_limit_is_read(monkeypatch):
    line = lines(ROW)
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", len(line))
    assert isinstance(read("pool.jsonl", line * 2)[1], Example)
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", len(line) - 1)
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


# Containers


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".JSONL", ".json"])
@pytest.mark.parametrize("pack", ["", ".gz", ".zst"])
def test_json_lines_are_read_plain_and_compressed(suffix, pack):
    data = lines(*[{**ROW, "id": i} for i in range(3)])
    found = read(f"pool{suffix}{pack}", compress(data, pack))
    assert [(one.id, one.line) for one in found] == [("0", 1), ("1", 2), ("2", 3)]


def compress(data, pack):
    if pack == ".gz":
        return gzip.compress(data)
    return zstandard.ZstdCompressor().compress(data) if pack == ".zst" else data


@pytest.mark.parametrize("pack", ["", ".gz", ".zst"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read_plain_and_compressed(indent, pack):
    data = json.dumps([{**ROW, "id": i, "x": -1.5e3} for i in range(3)], indent=indent)
    found = read(f"pool.json{pack}", compress(b"\xef\xbb\xbf \n" + data.encode(), pack))
    assert [(one.id, one.line) for one in found] == [("0", 1), ("1", 2), ("2", 3)]
    assert json.loads(found[2].record) == {**ROW, "id": 2, "x": -1500.0}


@pytest.mark.parametrize("pack", [".gz", ".zst"])
def test_packed_files_in_several_pieces_are_read_to_the_end(pack):
    data = compress(lines(ROW), pack) + compress(lines(ROW, ROW), pack)
    assert len(read(f"pool.jsonl{pack}", data)) == 3


@pytest.mark.parametrize("window", [1, 2, 3, 7, 64, 2**20])
def test_a_json_array_reads_alike_through_any_window(window, monkeypatch):
    rows = [{"n": -12.5, "t": True, "s": 'é🙂\\"]},[{', **ROW}, {"messages": HI, "id": 12345}]
    data = json.dumps(rows, ensure_ascii=True) + json.dumps(rows, ensure_ascii=False)
    data = data.replace("][", " ,\r\n\t").encode()
    monkeypatch.setattr(reading, "_WINDOW", window)
    assert [json.loads(one.record) for one in read("pool.json", data)] == rows * 2


def test_bad_rows_of_a_json_array_are_rejected_and_reading_goes_on():
    bad = [b"1", b"[2]", b'{"messages": []}', b'{"x": "\\ude00"}', b'{"x": "\xff\xc3"}']
    good = lines(ROW).strip()
    found = read("pool.json", b"[" + b",".join([good, *bad, good]) + b"]")
    assert [type(one) for one in found] == [Example, *[Rejected] * 5, Example]
    assert found[-1].line == 7
    assert all(one.text for one in found[1:-1])


@pytest.mark.parametrize(
    "tail",
    [b"", b",", b",]", b"}", b",{", b',{"a"', b',{"a": tru', b" {}]", b"] x", b"]\n[]", b',"x'],
)
def test_broken_syntax_stops_a_json_array_and_keeps_the_rows_before(tail):
    write("pool.json", b"[" + lines(ROW).strip() + tail)
    rows = read_examples(["pool.json"])
    if tail[:1] in (b",", b"]"):
        assert next(rows).messages == HI
    with pytest.raises(InputError, match=r"pool\.json: (row \d of the array is|text follows)"):
        list(rows)


def test_a_syntax_error_is_located():
    with pytest.raises(InputError, match=r"row 2 .*Expecting value at character 7\)"):
        read("pool.json", b'["a", oops, "b"]')


def test_an_endless_row_of_a_json_array_is_refused(monkeypatch):
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(reading, "_WINDOW", 100)
    with pytest.raises(InputError, match="row 1 of the array is not JSON, or longer than"):
        read("pool.json", b'["' + b"x" * 100_000 + b'"]')


def test_a_deep_row_of_a_json_array_is_refused():
    with pytest.raises(InputError, match="row 1 of the array cannot be parsed"):
        read("pool.json", b"[" + b"[" * 100_000)


def test_one_object_over_several_lines_is_refused():
    with pytest.raises(InputError, match="is one JSON object over several lines"):
        read("pool.json", json.dumps({"data": [ROW]}, indent=1).encode())


def test_parquet_is_read(monkeypatch):
    monkeypatch.setattr(reading, "_BATCH_ROWS", 2)
    pq.write_table(pa.Table.from_pylist([{**ROW, "id": i} for i in range(5)]), "pool.parquet")
    found = read("pool.parquet")
    assert [(one.id, one.line, one.messages) for one in found] == [
        (str(i), i + 1, HI) for i in range(5)
    ]
    assert json.loads(found[0].record) == {**ROW, "id": 0}


def test_parquet_columns_beyond_json_are_recorded():
    row = {**ROW, "day": datetime.date(2024, 5, 1), "image": b"\x00\xff", "score": float("nan")}
    pq.write_table(pa.Table.from_pylist([row]), "pool.parquet")
    (example,) = read("pool.parquet")
    record = json.loads(example.record)
    assert record == {**ROW, "day": "2024-05-01", "image": "AP8=", "score": None}


def test_a_parquet_text_that_is_not_utf8_rejects_its_row_only():
    outputs = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    table = pa.table({"instruction": ["x"] * 3, "output": outputs})
    pq.write_table(table, "pool.parquet")
    found = read("pool.parquet")
    assert [type(one) for one in found] == [Example, Rejected, Example]
    assert "not UTF-8" in found[1].reason
    assert found[1].line == 2


# Whole files that cannot be used


@pytest.mark.parametrize("pack", [".gz", ".zst"])
def test_a_truncated_packed_file_is_refused_after_its_rows(pack):
    text = os.urandom(100_000).hex()
    data = compress(lines(ROW, {"messages": text}, ROW), pack)
    write(f"pool.jsonl{pack}", data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cannot be read to its end .* fetch it again"):
        read(f"pool.jsonl{pack}")


@pytest.mark.parametrize("name", ["pool.jsonl.gz", "pool.json.zst", "pool.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_refused(name):
    with pytest.raises(InputError, match=f"{name}: cannot be read"):
        read(name, b"certainly not that" * 20)


def test_a_truncated_parquet_file_is_refused():
    pq.write_table(pa.Table.from_pylist([ROW] * 100), "pool.parquet")
    with pytest.raises(InputError, match=r"pool\.parquet: cannot be read"):
        read("pool.parquet", Path("pool.parquet").read_bytes()[:-20])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("pool.jsonl", b""),
        ("pool.jsonl", b"\n \n"),
        ("pool.json", b""),
        ("pool.json", b"[ ]"),
        ("pool.jsonl.gz", gzip.compress(b"")),
        ("pool.jsonl.zst", b""),
    ],
)
def test_an_empty_file_is_refused(name, data):
    with pytest.raises(InputError, match=f"{name}: the file is empty"):
        read(name, data)


def test_an_empty_parquet_file_is_refused():
    pq.write_table(pa.table({"messages": pa.array([], pa.string())}), "pool.parquet")
    with pytest.raises(InputError, match="the file is empty"):
        read("pool.parquet")


def test_a_missing_file_is_refused():
    with pytest.raises(InputError, match="no such file"):
        read("pool.jsonl")


def test_a_file_of_another_kind_is_refused():
    with pytest.raises(InputError, match=r"pool\.csv: is not a readable file; readable are"):
        read("pool.csv", b"a,b")


# Streaming


def test_rows_arrive_before_the_file_is_read():
    write("pool.jsonl", lines(*[ROW] * 10))
    rows = read_examples(["pool.jsonl", "missing.jsonl"])
    assert next(rows).line == 1
    rows.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pool.jsonl.gz", "pool.json.gz", "pool.jsonl.zst"])
def test_memory_does_not_grow_with_the_pool(name):
    line = lines({"messages": [HI[0], {**HI[1], "content": "yes " * 20_000}]}).strip()
    separator, ends = (b",", b"[]") if ".json." in name else (b"\n", b"  ")
    data = ends[:1] + separator.join([line] * 4000) + ends[1:]  # 320 MB
    write(name, compress(data, Path(name).suffix))
    code = (
        "import sys, resource; from g2is_ray.reading import read_examples\n"
        "rows = read_examples([sys.argv[1]]); next(rows)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "n = sum(1 for _ in rows)\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    root = Path(reading.__file__).parents[1]
    answer = subprocess.run(
        [sys.executable, "-c", code, name],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    rows, grown_kib = map(int, answer.stdout.split())
    assert rows == 3999
    assert grown_kib < 40_000


# Object storage


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/", recursive=True)


def test_any_fsspec_address_is_read(memory):
    memory.pipe("/data/pool.jsonl.gz", gzip.compress(lines(ROW)))
    memory.pipe("/data/deep/pool.json", json.dumps([ROW]).encode())
    memory.pipe("/data/notes.txt", b"x")
    with memory.open("/data/pool.parquet", "wb") as out:
        pq.write_table(pa.Table.from_pylist([ROW]), out)
    names = ["deep/pool.json", "pool.jsonl.gz", "pool.parquet"]
    files = expand(["memory://data"])
    assert files == [f"memory:///data/{name}" for name in names]
    assert [one.messages for one in read_examples(files)] == [HI] * 3
    assert expand(["memory://data/*.gz"]) == ["memory:///data/pool.jsonl.gz"]
    assert describe(files[0])["name"] == "pool.json"


def test_a_missing_address_is_refused(memory):
    with pytest.raises(InputError, match="memory://nowhere: no such file"):
        expand(["memory://nowhere"])


def test_an_unknown_protocol_is_refused():
    with pytest.raises(InputError, match="carrier-pigeon://x: cannot be opened"):
        expand(["carrier-pigeon://x"])


def test_chained_addresses_keep_their_chain():
    with zipfile.ZipFile("all.zip", "w") as archive:
        archive.writestr("in/pool.jsonl", lines(ROW))
    files = expand(["zip://in/*.jsonl::all.zip"])
    assert files == ["zip://in/pool.jsonl::all.zip"]
    assert [one.messages for one in read_examples(files)] == [HI]


# The hub: no network here, so load_dataset finds a local directory of the same name, or is
# replaced


def test_a_hub_dataset_is_read_split_by_split():
    write("org/name/train.jsonl", lines({**ROW, "id": 1}, {**ROW, "id": 2}))
    write("org/name/test.jsonl", lines({"messages": []}, {**ROW, "id": 3}))
    train = read("hf://org/name")
    assert [(one.id, one.group, one.line) for one in train] == [("1", "name", 1), ("2", "name", 2)]
    rejected, good = read("hf://org/name:test")
    assert (rejected.line, rejected.reason) == (1, "messages is an empty list")
    assert (good.id, good.messages) == ("3", HI)


def test_a_hub_dataset_is_streamed(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        yield ROW
        raise ConnectionError("gone\naway")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_examples(["hf://org/name:valid"])
    assert next(rows).id == "hf://org/name:valid:1"
    with pytest.raises(InputError, match=r"from the hub \(ConnectionError: gone away\)"):
        next(rows)
    assert asked == [("org/name", {"split": "valid", "streaming": True})]


def test_a_missing_split_is_refused():
    write("org/name/train.jsonl", lines(ROW))
    with pytest.raises(InputError, match="hf://org/name:nope: cannot be read from the hub"):
        read("hf://org/name:nope")
