"""Any bytes as a pool, and any text in a report: rows, rejected rows or one sentence."""

import functools
import gzip
import html.parser
import json
import string

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from report_views import run, selection, some_points, target, walk_picks

from g2is_ray.chat.conversation import Conversation
from g2is_ray.data.reading import Example, Rejected, read_examples
from g2is_ray.data.schemas import SCHEMAS, to_conversation, to_record
from g2is_ray.data.values import RowError
from g2is_ray.errors import InputError
from g2is_ray.report.run_page import render

pytestmark = pytest.mark.fuzz

COLUMNS = ["messages", "prompt", "completion", "instruction", "input", "output", "conversations"]
KEYS = [*COLUMNS, "role", "content", "from", "value", "type", "text", "id", "source", "answer"]
MEANINGFUL = ["system", "history", "tools", "chat_template_kwargs", "label", "rejected", "images"]
TURN_KEYS = ["weight", "train", "reasoning", "tool_calls", "function_call", "name", "arguments"]
WORDS = [
    "assistant",
    "user",
    "gpt",
    "function_call",
    '{"name": "f"}',
    "[]",
    "text",
    "../x",
    "\x00\x1b[2J",
    "{{ 7*7 }}",
    "\ud800",
]

texts = (
    st.text(max_size=8)
    | st.sampled_from(WORDS)
    | st.text(st.characters(categories=["Cc", "Cs", "Zl"]), max_size=3)
)
numbers = st.integers() | st.integers(10**400, 10**400 + 9) | st.floats()
keys = st.sampled_from([*KEYS, *TURN_KEYS]) | texts
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
turns = st.lists(
    st.fixed_dictionaries(
        {},
        optional={"role": texts, "content": values, "from": texts, "value": values}
        | dict.fromkeys(["x", *TURN_KEYS], values),
    ),
    max_size=4,
)
rows = (
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys([*KEYS, *MEANINGFUL], values | turns | turns.map(json.dumps))
    )
    | values
)
FORMATS = st.sampled_from([*SCHEMAS, "auto"])


def as_json(value, **options):
    return json.dumps(value, **options).encode("utf-8", "surrogatepass")


@st.composite
def broken(draw, data):
    """`data` with a slice of it replaced by other bytes."""
    data = draw(data)
    start = draw(st.integers(0, len(data)))
    stop = draw(st.integers(start, len(data)))
    return data[:start] + draw(st.binary(max_size=8)) + data[stop:]


escaped = st.builds(as_json, rows)
raw = st.builds(as_json, rows, ensure_ascii=st.just(False))
lines = st.lists(escaped | raw | broken(escaped) | st.binary(max_size=20), max_size=6).map(
    b"\n".join
)
arrays = st.builds(as_json, st.lists(rows, max_size=4))


MESSAGE_KEYS = {
    *("role", "content", "name", "tool_call_id", "tool_calls", "reasoning_content"),
}


def says_something(message):
    return message["content"].strip() or message.keys() & {"tool_calls", "reasoning_content"}


def read(path, data, **options):
    """Items of a file, or the sentence that refuses it; any other exception goes on."""
    path.write_bytes(data)
    try:
        items = list(read_examples([str(path)], **options))
    except InputError as error:
        sentence = str(error)
        assert len(sentence) < 2000
        assert "\n" not in sentence
        return None
    for item in items:
        assert isinstance(item, Example | Rejected)
        if isinstance(item, Example):
            json.loads(item.record, parse_constant=pytest.fail)
            assert "\n" not in item.record
            supervised = item.conversation.supervised
            assert any(supervised)
            for message, trained in zip(item.messages, supervised, strict=True):
                assert set(message) <= MESSAGE_KEYS
                assert not trained or (message["role"] == "assistant" and says_something(message))
            kept = [item.id, item.group, item.answer, item.conversation.columns()]
            as_json(kept, ensure_ascii=False).decode()
        else:
            item.text.encode()
            item.reason.encode()
            assert len(item.text) <= 2000
            assert len(item.reason) < 500
    return items


@given(data=lines, format=FORMATS)
def test_any_lines_are_rows_or_rejected(tmp_path, data, format):
    items = read(tmp_path / "pool.jsonl", data, format=format)
    text = data.replace(b"\xef\xbb\xbf", b"").lstrip()
    if items is not None and not text.startswith(b"["):  # an array of rows by a wrong name
        assert len(items) == sum(bool(line.strip()) for line in text.split(b"\n"))


@given(data=arrays | broken(arrays), format=FORMATS)
def test_any_array_is_rows_or_refused(tmp_path, data, format):
    read(tmp_path / "pool.json", data, format=format)


@given(
    data=st.binary(max_size=200),
    suffix=st.sampled_from([".jsonl", ".json", ".jsonl.gz", ".json.zst", ".parquet"]),
)
def test_any_bytes_are_rows_or_refused(tmp_path, data, suffix):
    read(tmp_path / f"pool{suffix}", data)


@given(data=broken(lines.map(gzip.compress)) | broken(lines.map(zstandard.compress)))
def test_any_packed_bytes_are_rows_or_refused(tmp_path, data):
    for suffix in (".gz", ".zst"):
        read(tmp_path / f"pool.jsonl{suffix}", data, format="messages")


def parquet(column_rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(column_rows), sink)
    return sink.getvalue().to_pybytes()


GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}


@given(data=broken(st.lists(st.just(GOOD), min_size=1, max_size=3).map(parquet)))
def test_any_broken_parquet_is_rows_or_refused(tmp_path, data):
    read(tmp_path / "pool.parquet", data, format="messages")


def arrow(column_rows):
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(column_rows)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@given(data=broken(st.lists(st.just(GOOD), min_size=1, max_size=3).map(arrow)))
def test_any_broken_arrow_file_is_rows_or_refused(tmp_path, data):
    read(tmp_path / "pool.arrow", data, format="messages")


@given(row=rows, format=st.sampled_from(list(SCHEMAS)))
def test_any_row_has_messages_or_a_reason(row, format):
    try:
        to_record(row)
        found = to_conversation(row, format)
    except RowError:
        return
    assert Conversation.from_columns(found.columns()) == found
    assert all(set(message) <= MESSAGE_KEYS for message in found.messages)


clean_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalar = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | clean_text
plain = scalar | st.lists(scalar, max_size=3) | st.dictionaries(clean_text, scalar, max_size=3)
answered = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": clean_text.map("a".__add__)}
)
valid = st.builds(
    lambda more, turns, last: {**more, "messages": [*turns, last]},
    st.dictionaries(clean_text.filter(lambda k: k not in ("id", "answer")), plain, max_size=3),
    st.lists(
        st.fixed_dictionaries({"role": clean_text.map("r".__add__), "content": clean_text}),
        max_size=3,
    ),
    answered,
)


@given(written=st.lists(valid, min_size=1, max_size=4), ascii=st.booleans())
def test_valid_rows_come_back_from_every_container(tmp_path, written, ascii):
    each = [as_json(row, ensure_ascii=ascii) for row in written]
    joined = b"\n".join(each)
    for name, data in {
        "pool.jsonl": joined,
        "pool.jsonl.gz": gzip.compress(joined),
        "pool.json.zst": zstandard.compress(b"[" + b",".join(each) + b"]"),
    }.items():
        items = read(tmp_path / name, data, format="messages")
        assert [json.loads(item.record) for item in items] == written
        assert [item.messages for item in items] == [row["messages"] for row in written]


class Page(html.parser.HTMLParser):
    """Tags and attributes that a page has."""

    def __init__(self, page):
        super().__init__()
        self.found = set()
        self.open = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found |= {tag, *(name for name, _ in attributes)}


hostile = st.text(max_size=12) | st.text(
    string.punctuation + "scriptonload \x00\x1b\u202e", max_size=30
)


def page_of(text):
    picks = walk_picks(6)
    picks = [
        type(p)(**{**vars(p), "id": text, "group": text, "text": text, "answer": text})
        for p in picks
    ]
    held = target(name=text, main=selection(text, picks), groups={text: 3})
    return render(
        run(model=text, workspace=text, pool_groups={text: 9}, settings={text: {text: text}}),
        [held],
        some_points(3),
    )


@functools.cache
def plain_page():
    return Page(page_of("plain"))


@given(text=hostile)
def test_any_text_in_a_report_stays_text(text):
    page = page_of(text)
    page.encode()
    assert Page(page).found <= plain_page().found
