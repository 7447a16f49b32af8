"""Sources: the files behind paths, globs and names of the hub, and what tells them apart."""

import json
import os
import re
from pathlib import Path

import pytest
from raw_files import ROW, write

from g2is_ray.errors import InputError
from g2is_ray.reading import read_examples
from g2is_ray.sources import describe, expand

pytestmark = pytest.mark.usefixtures("empty_folder")


# Finding files


def test_a_directory_gives_its_readable_files_at_any_depth():
    for name in ["a.jsonl", "b.json.gz", "deep/er/c.parquet", "d.jsonl.zst"]:
        write(f"data/{name}", b"x")
    for name in ["notes.txt", "e.parquet.gz", ".hidden.jsonl", ".cache/f.json", "g.gz"]:
        write(f"data/{name}", b"x")
    wanted = ["data/a.jsonl", "data/b.json.gz", "data/d.jsonl.zst", "data/deep/er/c.parquet"]
    assert expand(["data"]) == expand(["data/"]) == expand(["./data"]) == wanted


def test_files_are_sorted_and_named_once(empty_folder):
    for name in ["b.jsonl", "a.jsonl"]:
        write(name, b"x")
    sources = ["b.jsonl", "./b.jsonl", "*.jsonl", ".", str(empty_folder / "a.jsonl")]
    assert expand(sources) == ["a.jsonl", "b.jsonl"]


def test_absolute_paths_stay_absolute(empty_folder):
    write("a.jsonl", b"x")
    assert expand([str(empty_folder)]) == [str(empty_folder / "a.jsonl")]


def test_globs_reach_any_depth():
    for name in ["x/a.jsonl", "x/y/b.jsonl", "x/y/c.txt"]:
        write(name, b"x")
    assert expand(["**/*.jsonl"]) == ["x/a.jsonl", "x/y/b.jsonl"]
    assert expand(["x/*"]) == ["x/a.jsonl"]


def test_a_name_with_glob_characters_is_a_file_first():
    write("pool[1].jsonl", json.dumps(ROW).encode())
    assert expand(["pool[1].jsonl"]) == ["pool[1].jsonl"]
    assert len(list(read_examples(["pool[1].jsonl"]))) == 1


def test_links_are_followed(empty_folder):
    write("blobs/0a1b", json.dumps(ROW).encode())
    Path("data").mkdir()
    Path("data/pool.jsonl").symlink_to(empty_folder / "blobs" / "0a1b")
    assert expand(["data"]) == expand(["data/pool.jsonl"]) == ["data/pool.jsonl"]


def test_hub_names_are_left_as_they_are():
    assert expand(["hf://org/name:test", "hf://org/name"]) == [
        "hf://org/name",
        "hf://org/name:test",
    ]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("missing.jsonl", "no such file or directory"),
        ("missing", "no such file or directory"),
        ("*.jsonl", "matches no readable file"),
        ("folder", "matches no readable file"),
        ("folder/notes.txt", "is not a readable file"),
    ],
)
def test_a_source_without_readable_files_is_refused(source, problem):
    write("folder/notes.txt", b"x")
    with pytest.raises(InputError, match=f"{re.escape(source)}: {problem}"):
        expand([source])


def test_an_empty_source_is_refused():
    write("pool.jsonl", b"x")
    with pytest.raises(InputError, match="a source is an empty string"):
        expand([""])


# Identity


def test_a_description_tells_versions_apart():
    data = bytearray(os.urandom(3 * 2**20))
    first = describe(write("a/pool.jsonl", data))
    assert (first["name"], first["size"]) == ("pool.jsonl", 3 * 2**20)
    assert describe(write("b/pool.jsonl", data)) == first
    for place in (0, len(data) // 2, -1):
        data[place] ^= 1
        assert describe(write("a/pool.jsonl", data))["sha256"] != first["sha256"]
        data[place] ^= 1


def test_a_hub_dataset_is_described_by_name():
    assert describe("hf://org/name:test") == {"name": "hf://org/name:test"}


def test_a_missing_file_cannot_be_described():
    with pytest.raises(InputError, match=r"pool\.jsonl: cannot be read"):
        describe("pool.jsonl")
