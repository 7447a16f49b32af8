"""Sources: the files behind paths, globs and names of the hub, and what tells them apart."""

import json
import os
import re
from pathlib import Path

import pytest
from raw_files import HI, ROW, lines, write

from g2is_ray.data.reading import read_examples
from g2is_ray.data.sources import describe, expand, held_out
from g2is_ray.errors import InputError
from jobs.cli import main

pytestmark = pytest.mark.usefixtures("empty_folder")


# Finding files


def test_a_directory_gives_its_readable_files_at_any_depth():
    names = ["a.jsonl", "b.json.gz", "d.jsonl.zst", "deep/er/c.parquet", "e.arrow", "f.json.bz2"]
    for name in names:
        write(f"data/{name}", b"x")
    for name in ["notes.txt", "e.parquet.gz", ".hidden.jsonl", ".cache/f.json", "g.gz"]:
        write(f"data/{name}", b"x")
    wanted = [f"data/{name}" for name in names]
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


def test_brackets_of_a_folders_name_need_no_escape():
    write("pool[1]/a.jsonl", b"x")
    assert expand(["pool[1]/*.jsonl"]) == expand(["pool[1]"]) == ["pool[1]/a.jsonl"]
    write("pool1/b.jsonl", b"x")  # which the brackets match
    assert expand(["pool[1]/*.jsonl"]) == ["pool1/b.jsonl"]


METADATA = [
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
    *("dataset-metadata.json", "config.json", "tokenizer_config.json", "train/cache-0123.arrow"),
]


def test_files_that_describe_data_are_passed_over_in_folders_and_globs():
    for name in ["data/train.json", *(f"data/{name}" for name in METADATA), "data/README.md"]:
        write(name, b"x")
    assert expand(["data"]) == expand(["data/**"]) == ["data/train.json"]
    assert expand(["data/state.json"]) == ["data/state.json"]


def test_kinds_of_data_that_are_not_read_are_named(caplog):
    write("data/a.jsonl", b"x")
    write("data/b.csv", b"x")
    assert expand(["data"]) == ["data/a.jsonl"]
    assert "skipping 1 files in unsupported formats" in caplog.text
    for source in ("data/b.csv", "data/*.csv"):
        with pytest.raises(InputError, match=r"convert CSV with python -c .*DictReader"):
            expand([source])


def test_a_saved_data_set_is_read_with_all_its_splits():
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list([ROW] * 3)
    rows.save_to_disk("one", num_shards=2)
    datasets.DatasetDict(train=rows, test=rows).save_to_disk("two")
    for folder, count in {"one": 3, "two": 6}.items():
        assert [one.messages for one in read_examples(expand([folder]))] == [HI] * count
    assert held_out(expand(["two"])) == ["two/test/data-00000-of-00001.arrow"]


HELD_OUT = [
    *("test.jsonl", "a/validation.parquet", "gsm8k_test.jsonl", "dev.json.gz", "val-00000.parquet"),
    *(
        "TEST.jsonl",
        "a/test/0.parquet",
        "s3://b/eval/x.jsonl",
        "hf://org/name:test",
        "x.valid.json",
    ),
]
POOLS = [
    *("train.jsonl", "contest.jsonl", "evaluate/pool.jsonl", "latest.parquet", "hf://org/test-set"),
    *("/data/test/train/a.jsonl", "hf://org/name:train", "developer.json"),
]


def test_files_named_like_held_out_rows_are_found():
    assert held_out([*POOLS, *HELD_OUT]) == HELD_OUT


def test_a_pool_with_a_test_file_is_said_to_have_one(tiny_model, capsys, logging_as_before):
    for name in ("train", "test"):
        write(f"data/{name}.jsonl", lines(ROW))
    assert main(["ingest", "--pool", "data", "--model", tiny_model, "--workspace", "ws"]) == 0
    said = capsys.readouterr().err
    assert "data/test.jsonl has a name of held-out rows, as have 1 of 2 files" in said


def test_hub_names_are_left_as_they_are():
    names = ["hf://org/name", "hf://org/name:en.v1:test", "hf://org/name:test"]
    assert expand(names[::-1]) == names


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
