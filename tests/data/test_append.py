"""`g2is ingest --append`: a pool grows by parts, whole or not at all, and each row once."""

import json
import shutil
from pathlib import Path

import pytest
from pool_files import row, write

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.data.examples import ExampleSet
from g2is_ray.workspace.stage import Stage
from g2is_ray.workspace.workspace import Workspace


@pytest.fixture(autouse=True)
def folder(empty_folder):
    """Rows 0 to 19 in a pool of parts of 8 rows; 20 to 34 and 35 to 39 to append."""
    write("pool.jsonl", *(row(i) for i in range(20)))
    write("more.jsonl", *(row(i) for i in range(20, 35)))
    write("last.jsonl", *(row(i) for i in range(35, 40)))


@pytest.fixture
def first(g2is, tiny_model):
    """Reads the pool into `ws`, or another workspace."""

    def ingest(workspace="ws"):
        given = ["--pool", "pool.jsonl", "--model", tiny_model, "--workspace", workspace]
        g2is("ingest", *given, "--part-rows", 8, "--max-tokens", 64)

    ingest()
    return ingest


def appended(*files, workspace="ws"):
    return "ingest", "--workspace", workspace, "--append", *files


def pool(workspace="ws"):
    return ExampleSet(Workspace(workspace), "pool")


def numbers(workspace="ws"):
    return [json.loads(one["record"])["kept"] for one in pool(workspace).read_all(["record"])]


def receipt(workspace="ws"):
    return json.loads(Path(workspace, "pool/receipt.json").read_text())


def contents(workspace="ws"):
    """Files of the pool; a receipt without the time that it took."""
    files = {path.name: path.read_bytes() for path in Path(workspace, "pool").iterdir()}
    return files | {"receipt.json": receipt(workspace) | {"seconds": 0}}


def inodes():
    return {str(path): path.stat().st_ino for path in Path("ws").rglob("*")}


def test_rows_become_parts_of_their_own_after_those_that_are_there(first, g2is):
    before = contents()
    g2is(*appended("more.jsonl"))
    assert numbers() == list(range(35))
    assert receipt()["sizes"] == [8, 8, 4, 8, 7]
    assert (receipt()["rows"], receipt()["parts"]) == (35, 5)
    after = contents()
    assert all(after[name] == data for name, data in before.items() if name != "receipt.json")


def test_rows_of_parts_of_different_sizes_are_taken_by_number(first, g2is):
    g2is(*appended("more.jsonl"))
    g2is(*appended("last.jsonl"))
    wanted = [39, 19, 20, 0, 34, 35, 20, 28]
    found = pool().take(wanted, ["record"])
    assert [json.loads(one["record"])["kept"] for one in found] == wanted


def test_the_same_append_again_does_nothing(first, g2is):
    g2is(*appended("more.jsonl"))
    before = inodes()
    g2is(*appended("more.jsonl"))
    shutil.copy("more.jsonl", "renamed.jsonl")
    g2is(*appended("renamed.jsonl", "pool.jsonl"))
    assert inodes() == before


def test_of_several_files_only_those_that_are_new_are_read(first, g2is):
    g2is(*appended("more.jsonl"))
    g2is(*appended("more.jsonl", "last.jsonl"))
    assert numbers() == list(range(40))
    assert receipt()["sizes"] == [8, 8, 4, 8, 7, 5]


def test_pool_and_append_in_one_command_read_one_after_the_other(first, g2is, tiny_model):
    g2is(*appended("more.jsonl"))
    given = ["--model", tiny_model, "--part-rows", 8, "--max-tokens", 64, "--pool", "pool.jsonl"]
    g2is(*appended("more.jsonl", workspace="whole"), *given)
    assert contents("whole") == contents()


def test_the_command_that_the_pool_was_begun_with_finds_it_done(first, g2is):
    g2is(*appended("more.jsonl"))
    before = inodes()
    first()
    assert inodes() == before


def test_other_files_without_append_are_refused_and_append_is_named(first, refused, tiny_model):
    given = ["--pool", "more.jsonl", "--model", tiny_model, "--workspace", "ws"]
    sentence = refused("ingest", *given, "--part-rows", 8, "--max-tokens", 64)
    assert sentence.startswith("pool was made with files ")
    assert ": add files with --append, or run `g2is run --redo pool --pool more.jsonl " in sentence


def test_other_settings_are_refused_for_an_append_too(first, refused):
    sentence = refused(*appended("more.jsonl"), "--max-tokens", 65)
    assert sentence.startswith("pool was made with max_tokens 64, now it is 65: run `g2is")
    assert numbers() == list(range(20))


def test_an_append_needs_a_pool(refused):
    sentence = refused(*appended("more.jsonl"))
    assert sentence.startswith("pool is not set: ")


def test_an_id_of_the_old_rows_is_qualified_by_the_file(first, g2is, refused):
    write("named.jsonl", row(50, id="a"))
    g2is(*appended("named.jsonl"))
    write("again.jsonl", row(51), row(52, id="a"))
    g2is(*appended("again.jsonl"))
    ids = [one["id"] for one in pool().read_all(["id"])]
    assert ids[-3:] == ["a", "again.jsonl:1", "again.jsonl#a"]
    before = contents()
    write("again.jsonl", row(53, id="a"))
    sentence = refused(*appended("again.jsonl"))
    assert sentence.startswith("again.jsonl:1: id 'a' was already used at again.jsonl:2;")
    assert contents() == before


def test_rows_named_after_a_file_of_the_same_name_are_refused_with_the_remedy(first, refused):
    write("pool.jsonl", row(99))
    sentence = refused(*appended("pool.jsonl"))
    assert sentence.startswith("pool.jsonl:1: id 'pool.jsonl:1' was already used at pool.jsonl:1;")
    assert sentence.endswith("named after their file, so rename it")


def test_rows_set_aside_are_added_and_counted(first, g2is):
    write("bad.jsonl", "{oops", *(row(i) for i in range(50, 60)))
    g2is(*appended("bad.jsonl"), "--max-rejected", 0.1)
    write("worse.jsonl", *(row(i) for i in range(60, 70)), "{oops")
    g2is(*appended("worse.jsonl"), "--max-rejected", 0.1)
    lines = Path("ws/pool/rejected.jsonl").read_text().splitlines()
    places = [(one["file"], one["line"]) for one in map(json.loads, lines)]
    assert places == [("bad.jsonl", 1), ("worse.jsonl", 11)]
    assert (receipt()["rejected"], receipt()["items"]) == (2, 42)


def test_too_many_bad_rows_leave_the_pool_as_it_was_until_they_are_allowed(first, g2is, refused):
    write("bad.jsonl", "{oops", *(row(i) for i in range(50, 59)))
    sentence = refused(*appended("bad.jsonl"))
    assert sentence.startswith("bad.jsonl: 1 of 10 rows cannot be used, more than max_rejected")
    assert len(Path("ws/pool/append-rejected.jsonl").read_text().splitlines()) == 1
    assert numbers() == list(range(20))
    first()
    g2is(*appended("bad.jsonl"), "--max-rejected", 0.1)
    assert numbers() == [*range(20), *range(50, 59)]
    assert not Path("ws/pool/append-rejected.jsonl").exists()


def test_status_says_what_was_made_before_the_pool_grew(first, g2is):
    workspace = Workspace("ws")
    workspace.stage("gradients").begin({}, ["pool"])
    workspace.stage("gradients").conclude({"rows": 20, "parts": 3, "seconds": 1})
    g2is(*appended("more.jsonl"))
    lines = g2is("status", "--workspace", "ws").splitlines()
    (line,) = (line for line in lines if line.startswith("gradients"))
    assert line.endswith("done, 20 rows, 1.0 s, before pool grew")


@pytest.fixture
def killed(first, monkeypatch):
    """Begins an append and ends it at the row with this number."""
    from jobs.cli import main

    def run(number, *files):
        with monkeypatch.context() as patch:
            encode = ChatEncoder.encode

            def until(self, example):
                if example.messages[0]["content"] == f"What is {number}?":
                    raise SystemExit
                return encode(self, example)

            patch.setattr(ChatEncoder, "encode", until)
            with pytest.raises(SystemExit):
                main(list(appended(*files)))

    return run


def test_a_killed_append_leaves_the_pool_usable_and_goes_on(killed, first, g2is):
    killed(30, "more.jsonl")
    assert Path("ws/pool/part-00003.json").exists()
    assert numbers() == list(range(20))
    first()
    part = Path("ws/pool/part-00003.parquet").stat().st_ino
    g2is(*appended("more.jsonl"))
    assert Path("ws/pool/part-00003.parquet").stat().st_ino == part
    first("undisturbed")
    g2is(*appended("more.jsonl", workspace="undisturbed"))
    assert contents() == contents("undisturbed")


def test_an_append_killed_before_it_was_recorded_is_not_made_twice(first, g2is, monkeypatch):
    def end(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "extend", end)
        with pytest.raises(SystemExit):
            g2is(*appended("more.jsonl"))
    g2is(*appended("more.jsonl"))
    assert numbers() == list(range(35))
    assert len(Workspace("ws").stages()["pool"]["settings"]["files"]) == 2


def test_parts_of_an_append_that_was_given_up_are_not_taken_for_another(killed, first, g2is):
    killed(30, "more.jsonl")
    g2is(*appended("last.jsonl"))
    assert numbers() == [*range(20), *range(35, 40)]
    g2is(*appended("more.jsonl"))
    assert numbers() == [*range(20), *range(35, 40), *range(20, 35)]


def test_nothing_is_left_of_an_append_that_was_given_up(killed, g2is):
    write("large.jsonl", *(row(i) for i in range(100, 140)))
    killed(139, "large.jsonl")
    g2is(*appended("last.jsonl"))
    names = {path.name.partition(".")[0] for path in Path("ws/pool").glob("part-*")}
    assert names == {f"part-{part:05d}" for part in range(4)}


@pytest.mark.parametrize("part", [1, 4])
def test_a_damaged_part_of_a_grown_pool_is_made_again_by_its_own_command(part, first, g2is):
    g2is(*appended("more.jsonl"))
    g2is(*appended("last.jsonl"))
    before = contents()
    Path(f"ws/pool/part-{part:05d}.parquet").write_bytes(b"")
    first() if part == 1 else g2is(*appended("more.jsonl"))
    assert contents() == before


def test_a_damaged_appended_part_is_not_passed_over(first, g2is, refused):
    g2is(*appended("more.jsonl"))
    Path("ws/pool/part-00003.parquet").write_bytes(b"")
    sentence = refused("ingest", "--workspace", "ws")
    assert sentence.endswith(
        "ws/pool: a part of appended files is damaged; give the --append that read them again"
    )
