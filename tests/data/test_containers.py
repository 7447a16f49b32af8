"""Containers: a file is read by its first bytes, or named for what it is."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from raw_files import HI, ROW, lines, read, write

from g2is_ray.data.reading import Example, read_examples
from g2is_ray.errors import InputError

pytestmark = pytest.mark.usefixtures("empty_folder")

TABLE = pa.Table.from_pylist([ROW, ROW])


def parquet(table=TABLE):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def arrow(table=TABLE, new=pa.ipc.new_stream):
    sink = pa.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def skippable(data):
    return b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + zstandard.compress(data)


ROWS = lines(ROW, ROW)
READ = {
    "gzip": gzip.compress(ROWS),
    "zstd": zstandard.compress(ROWS),
    "zstd after a frame to skip": skippable(ROWS),
    "bzip2": bz2.compress(ROWS),
    "Parquet": parquet(),
    "Arrow stream": arrow(),
    "Arrow file": arrow(new=pa.ipc.new_file),
    "array": json.dumps([ROW, ROW]).encode(),
    "array over several lines": json.dumps([ROW, ROW], indent=2).encode(),
    "byte order marks": b"\xef\xbb\xbf" + lines(ROW) + b"\xef\xbb\xbf" + lines(ROW),
    "packed array": gzip.compress(b"\xef\xbb\xbf" + json.dumps([ROW, ROW]).encode()),
    "lines": ROWS,
}


@pytest.mark.parametrize("data", READ.values(), ids=READ)
@pytest.mark.parametrize(
    "suffix", [".jsonl", ".json", ".parquet", ".arrow", ".jsonl.gz", ".json.zst", ".jsonl.bz2"]
)
def test_first_bytes_decide_whatever_the_name(data, suffix):
    assert [one.messages for one in read(f"pool{suffix}", data)] == [HI, HI]


def zipped():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("pool.jsonl", ROWS)
    return sink.getvalue()


def tarred():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pool.jsonl"))
    return sink.getvalue()


def long_window():
    """A frame that asks for a window of 2 GiB, as zstd --long=31 writes."""
    data = bytearray(zstandard.ZstdCompressor(write_content_size=False).compress(ROWS * 99))
    data[5] = (31 - 10) << 3
    return bytes(data)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
NAMED = {
    "UTF-16": (ROWS.decode().encode("utf-16"), "is UTF-16 or UTF-32; write UTF-8"),
    "UTF-16 without a mark": (ROWS.decode().encode("utf-16-le"), "is UTF-16 or UTF-32"),
    "big-endian UTF-16": (ROWS.decode().encode("utf-16-be"), "is UTF-16 or UTF-32"),
    "UTF-32": (ROWS.decode().encode("utf-32"), "is UTF-16 or UTF-32"),
    "Git LFS": (LFS, "is a Git LFS pointer, not the file; run git lfs pull"),
    "git-annex": (b"/annex/objects/SHA256E-s1--a.jsonl\n", "is a git-annex pointer"),
    "HTML": (b"\n<!DOCTYPE html>\n<html><body>401</body></html>", "is HTML, perhaps a page"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is XML, perhaps"),
    "zip": (zipped(), "is a zip archive; unpack it"),
    "tar": (tarred(), "is a tar archive; unpack it"),
    "packed tar": (gzip.compress(tarred()), "is a tar archive; unpack it"),
    "xz": (lzma.compress(ROWS), "is packed with xz; unpack it with xz -d"),
    "pickle": (pickle.dumps([ROW]), "is a Python pickle; convert it"),
    "packed Parquet": (gzip.compress(parquet()), "is a table inside gzip; unpack it"),
    "a large window": (long_window(), "with a window of more than 128 MiB"),
    "one object": (json.dumps({"data": [ROW]}, indent=1).encode(), "one JSON object over several"),
    "one object in a line": (lines({"data": [ROW]}), "the rows seem to be in its list 'data'"),
    "messages, one a line": (lines(*HI), "a row seems to be one message"),
    "preferences": (lines({"prompt": "a", "chosen": "b", "rejected": "c"}), "preference data"),
}


@pytest.mark.parametrize(("data", "problem"), NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz"])
def test_what_is_not_read_is_named_with_a_remedy(data, problem, suffix):
    with pytest.raises(InputError) as refusal:
        read(f"pool{suffix}", data)
    assert str(refusal.value).startswith(f"pool{suffix}: ")
    assert problem in str(refusal.value)


def test_several_objects_on_one_line_are_named():
    (rejected,) = read("pool.jsonl", lines(ROW).strip() * 3)
    assert rejected.reason == "several JSON values are on one line; write one row a line"


def test_a_first_line_that_is_broken_is_one_row():
    assert len(read("pool.jsonl", lines(b"{", ROW))) == 2
    assert len(read("pool.jsonl", lines(b'["x"]', ROW))) == 2


# Empty files


EMPTY = {
    "nothing": b"",
    "blank": b"\n\n",
    "packed": gzip.compress(b""),
    "array": b"[]",
    "Parquet": parquet(TABLE.slice(0, 0)),
    "Arrow": arrow(TABLE.slice(0, 0)),
}


@pytest.mark.parametrize("data", EMPTY.values(), ids=EMPTY)
def test_an_empty_file_among_others_is_passed_over_with_a_line_in_the_log(data, caplog):
    write("a.json", data)
    write("b.json", ROWS)
    assert len(list(read_examples(["a.json", "b.json"]))) == 2
    assert "a.json: the file is empty; skipping it" in caplog.messages
    write("b.json", b"")
    with pytest.raises(InputError, match=r"a\.json, b\.json: the file is empty"):
        list(read_examples(["a.json", "b.json"]))


# Cells that Python has no value for


FAR = 2**60
ODD = {
    "year 9999 with a zone": pa.array(
        [253402300799999999, None], pa.timestamp("us", tz="Asia/Tokyo")
    ),
    "unknown zone": pa.array([1, None], pa.timestamp("us", tz="Mars/Base")),
    "far time": pa.array([FAR, None], pa.timestamp("us")),
    "nanoseconds": pa.array([1, None], pa.timestamp("ns")),
    "infinite date": pa.array([2**31 - 1, None], pa.int32()).view(pa.date32()),
    "long duration": pa.array([FAR, None], pa.duration("s")),
    "wide decimal": pa.array([10**60, None], pa.decimal256(70, 2)),
    "same field twice": pa.StructArray.from_arrays([pa.array([1, 2])] * 2, names=["a", "a"]),
    "numbers in a dictionary": pa.array([FAR, None], pa.duration("s")).dictionary_encode(),
    "in a list": pa.array([[FAR, 1], None], pa.list_(pa.timestamp("us"))),
    "in a fixed list": pa.array([[FAR, 1], None], pa.list_(pa.timestamp("us"), 2)),
    "in a map": pa.array([[("a", FAR)], None], pa.map_(pa.string(), pa.timestamp("us"))),
    "in an object": pa.array([{"t": FAR}, None], pa.struct([("t", pa.timestamp("us"))])),
    "no type": pa.nulls(2),
    "bytes": pa.array([b"\xff", None], pa.large_binary()),
    "half numbers": pa.array([1.5, None], pa.float16()),
    "uuid": pa.array([b"0" * 16, None], pa.uuid()),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("write_table", [parquet, arrow])
def test_a_cell_without_a_python_value_is_text_or_null(odd, write_table):
    table = pa.table({"messages": TABLE["messages"], "odd": odd, "n": [1, 2]})
    found = read("pool.parquet", write_table(table))
    assert all(isinstance(one, Example) for one in found)
    assert [one.messages for one in found] == [HI, HI]
    records = [json.loads(one.record) for one in found]
    assert [one["n"] for one in records] == [1, 2]
    assert odd.null_count == 0 or records[1]["odd"] is None


def test_odd_cells_within_messages_leave_the_messages():
    kind = pa.struct([("role", pa.string()), ("content", pa.string()), ("at", pa.date32())])
    turns = pa.array([[{**turn, "at": 2**31 - 1} for turn in HI]], pa.list_(kind))
    (example,) = read("pool.parquet", parquet(pa.table({"messages": turns})))
    assert [(m["role"], m["content"]) for m in example.messages] == [
        (m["role"], m["content"]) for m in HI
    ]


def test_an_arrow_file_that_points_outside_itself_is_refused():
    table = pa.table({"instruction": ["a" * 100] * 9, "output": ["b" * 100] * 9})
    data = bytearray(arrow(table))
    offsets = data.index((100).to_bytes(4, "little") + (200).to_bytes(4, "little"))
    data[offsets : offsets + 4] = (2**30).to_bytes(4, "little")
    with pytest.raises(InputError, match=r"pool\.arrow: cannot be read to its end"):
        read("pool.arrow", bytes(data))
