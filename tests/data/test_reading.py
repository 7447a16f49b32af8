"""Reading: rows of every container in every storage, and broken files."""

import datetime
import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from raw_files import HI, ROW, lines, read, write

from g2is_ray.data import json_rows, reading, tables
from g2is_ray.data.reading import Example, Rejected, read_examples
from g2is_ray.data.sources import describe, expand
from g2is_ray.errors import InputError

pytestmark = pytest.mark.usefixtures("empty_folder")


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
def test_a_json_array_reads_alike_through_any_window(window):
    rows = [{"n": -12.5, "t": True, "s": 'é🙂\\"]},[{', **ROW}, {"messages": HI, "id": 12345}]
    data = json.dumps(rows, ensure_ascii=True) + json.dumps(rows, ensure_ascii=False)
    data = data.replace("][", " ,\r\n\t").encode()
    found = json_rows.array_rows(io.BufferedReader(io.BytesIO(data)), "f", characters=window)
    assert [row for _, row in found] == rows * 2


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


def test_an_endless_row_of_a_json_array_is_refused():
    stream = io.BufferedReader(io.BytesIO(b'["' + b"x" * 100_000 + b'"]'))
    with pytest.raises(InputError, match="row 1 of the array is not JSON, or longer than"):
        list(json_rows.array_rows(stream, "f", characters=100, max_row_bytes=1000))


def test_a_deep_row_of_a_json_array_is_refused():
    with pytest.raises(InputError, match="row 1 of the array cannot be parsed"):
        read("pool.json", b"[" + b"[" * 100_000)


def test_one_object_over_several_lines_is_refused():
    with pytest.raises(InputError, match="is one JSON object over several lines"):
        read("pool.json", json.dumps({"data": [ROW]}, indent=1).encode())


def test_parquet_is_read():
    pq.write_table(pa.Table.from_pylist([{**ROW, "id": i} for i in range(5)]), "pool.parquet")
    found = read("pool.parquet")
    assert [(one.id, one.line, one.messages) for one in found] == [
        (str(i), i + 1, HI) for i in range(5)
    ]
    assert json.loads(found[0].record) == {**ROW, "id": 0}
    with Path("pool.parquet").open("rb") as raw:
        rows = [(line, row["id"]) for line, row in tables.parquet_rows(raw, batch_rows=2)]
    assert rows == [(i + 1, i) for i in range(5)]


def test_parquet_columns_beyond_json_are_recorded():
    row = {
        **ROW,
        "day": datetime.date(2024, 5, 1),
        "blob": b"\x00\xff",
        "word": b"w",
        "score": float("nan"),
    }
    pq.write_table(pa.Table.from_pylist([row]), "pool.parquet")
    (example,) = read("pool.parquet")
    record = json.loads(example.record)
    assert record == {**ROW, "day": "2024-05-01", "blob": "AP8=", "word": "w", "score": None}


def test_a_parquet_text_that_is_not_utf8_rejects_its_row_only():
    outputs = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    table = pa.table({"instruction": ["x"] * 3, "output": outputs})
    pq.write_table(table, "pool.parquet")
    found = read("pool.parquet")
    assert [type(one) for one in found] == [Example, Rejected, Example]
    assert "no UTF-8" in found[1].reason
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
        ("pool.jsonl.gz", gzip.compress(b"", mtime=0)),
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
        "import sys, resource; from g2is_ray.data.reading import read_examples\n"
        "rows = read_examples([sys.argv[1]]); next(rows)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "n = sum(1 for _ in rows)\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    root = Path(reading.__file__).parents[2]
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

    def load_dataset(*names, **options):
        asked.append((*names, options))
        yield ROW
        raise ConnectionError("gone\naway")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_examples(["hf://org/name:valid"])
    assert next(rows).id == "hf://org/name:valid:1"
    with pytest.raises(InputError, match=r"from the hub \(ConnectionError: gone away\)"):
        next(rows)
    assert asked == [("org/name", None, {"split": "valid", "streaming": True})]
    assert next(read_examples(["hf://org/name:en:valid"])).group == "name"
    assert asked[1] == ("org/name", "en", {"split": "valid", "streaming": True})


def test_a_missing_split_is_refused():
    write("org/name/train.jsonl", lines(ROW))
    with pytest.raises(InputError, match="hf://org/name:nope: cannot be read from the hub"):
        read("hf://org/name:nope")
