"""Ingest: from files to parts and back, rejected rows, and refused files."""

import json
import os
import shutil
from pathlib import Path

import pytest
from pool_files import row, write

from g2is_ray.chat.conversation import Conversation
from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.config import ModelSettings, ReadSettings
from g2is_ray.data.examples import ExampleSet, write_examples
from g2is_ray.data.sources import expand
from g2is_ray.errors import G2isError, InputError
from g2is_ray.models.loading import load_tokenizer
from g2is_ray.workspace.workspace import Workspace

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return ChatEncoder(load_tokenizer(ModelSettings(model=tiny_model)), max_tokens=64)


@pytest.fixture
def ingest(encoder):
    """Writes a file's rows as the set `pool` of the workspace `ws`."""

    def write_set(file, workspace="ws", schema="auto", max_rows=None, many=10_000, **settings):
        given = ReadSettings(**({"part_rows": 8} | settings))
        return write_examples(
            Workspace(workspace),
            "pool",
            expand([file]) if Path(file).is_dir() else [file],
            encoder,
            given,
            schema=schema,
            max_rows=max_rows,
            max_rejected_rows=many,
        )

    return write_set


def held(workspace="ws"):
    return ExampleSet(Workspace(workspace), "pool")


def rejected(workspace="ws"):
    lines = Path(workspace, "pool", "rejected.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_parts_hold_every_row_in_order_with_its_own_record(ingest):
    rows = [row(i, id=f"r{i}", source=f"s{i % 3}", answer=i) for i in range(20)]
    receipt = ingest(write("pool.jsonl", *rows))
    assert (receipt["rows"], receipt["parts"], receipt["rejected"]) == (20, 3, 0)
    found = list(held().read_all())
    assert [json.loads(one["record"]) for one in found] == rows
    messages = [Conversation.from_columns(one).messages for one in found]
    assert messages == [one["messages"] for one in rows]
    assert [one["id"] for one in found] == [f"r{i}" for i in range(20)]
    assert [one["group"] for one in found] == [f"s{i % 3}" for i in range(20)]
    assert [one["answer"] for one in found] == [str(i) for i in range(20)]
    assert [(one["file"], one["line"]) for one in found] == [
        ("pool.jsonl", i + 1) for i in range(20)
    ]


def test_rows_are_taken_in_the_order_asked_for(ingest):
    ingest(write("pool.jsonl", *(row(i) for i in range(20))))
    wanted = [19, 0, 7, 8, 8, 3]
    found = held().take(wanted, ["record"])
    assert [json.loads(one["record"])["kept"] for one in found] == wanted


def test_tokens_are_counted_as_the_encoder_counts(ingest, encoder):
    long = row(" ")
    long["messages"][1]["content"] = " ".join(map(str, range(99)))
    receipt = ingest(write("pool.jsonl", row(1), long))
    for one in held().read_all():
        encoded = encoder.encode(Conversation.from_columns(one))
        assert one["tokens"] == len(encoded.input_ids)
        assert one["supervised_tokens"] == encoded.supervised_tokens
        assert one["truncated"] == encoded.truncated
    assert receipt["truncated"] == 1
    assert receipt["tokens"] == sum(one["tokens"] for one in held().read_all())


def test_a_bad_line_is_set_aside_with_place_reason_and_text(ingest):
    rows = [row(i) for i in range(20)]
    rows.insert(11, "{oops")
    receipt = ingest(write("pool.jsonl", *rows), max_rejected=0.05)
    assert (receipt["rows"], receipt["rejected"]) == (20, 1)
    (one,) = rejected()
    assert (one["file"], one["line"], one["text"]) == ("pool.jsonl", 12, "{oops")
    assert one["reason"].startswith("the line is not JSON")
    assert [json.loads(one["record"])["kept"] for one in held().read_all()] == list(range(20))


@pytest.mark.parametrize(("bad", "stops"), [(1, False), (2, True)])
def test_more_than_one_percent_of_bad_rows_stops_by_default(bad, stops, ingest):
    file = write("pool.jsonl", *["{oops"] * bad, *(row(i) for i in range(99)))
    if not stops:
        assert ingest(file)["rejected"] == bad
        return
    with pytest.raises(InputError, match=rf"^pool.jsonl: {bad} of {99 + bad} rows") as refusal:
        ingest(file)
    assert "max_rejected 0.01" in str(refusal.value)
    assert "pool.jsonl:1: the line is not JSON" in str(refusal.value)
    assert len(rejected()) == bad
    assert ingest(file, max_rejected=0.5)["rows"] == 99


def test_a_pool_of_bad_rows_is_not_read_to_its_end(ingest):
    with pytest.raises(InputError, match=r"^pool\.jsonl: 10 of 11 rows cannot be used"):
        ingest(write("pool.jsonl", row(0), *["{oops"] * 1000), many=10)
    file = write("other.jsonl", *(row(i) for i in range(24)), *["{oops"] * 11)
    assert ingest(file, "other", many=10, max_rejected=0.5)["rejected"] == 11


def test_max_rejected_of_one_does_not_accept_a_pool_of_nothing(ingest):
    with pytest.raises(InputError, match="3 of 3 rows cannot be used, so no row is left"):
        ingest(write("pool.jsonl", *["{oops"] * 3), max_rejected=1)


UNSUPERVISED = {
    "no assistant": {"messages": [{"role": "user", "content": "x"}]},
    "an empty answer": {"prompt": "x", "completion": " "},
    "an answer beyond max_tokens": {"prompt": "x " * 99, "completion": "y"},
}


@pytest.mark.parametrize("bad", UNSUPERVISED.values(), ids=UNSUPERVISED)
def test_a_row_without_supervised_tokens_is_rejected(bad, ingest):
    with pytest.raises(InputError, match=r"pool\.jsonl:1: .*assistant"):
        ingest(write("pool.jsonl", bad))
    assert json.loads(rejected()[0]["text"]) == bad


def test_an_unknown_schema_names_the_columns(ingest):
    with pytest.raises(InputError, match=r"^pool.jsonl: the columns \('text', 'label'\) fit no"):
        ingest(write("pool.jsonl", {"text": "x", "label": 1}))


@pytest.mark.parametrize(
    ("name", "content"),
    [("none.jsonl", None), ("empty.jsonl", ""), ("blank.jsonl", "\n \n"), ("empty.json", "[]")],
)
def test_a_missing_or_empty_file_is_refused_by_name(name, content, ingest):
    if content is not None:
        Path(name).write_text(content)
    with pytest.raises(InputError, match=f"^{name}: "):
        ingest(name)


HOSTILE = ["../../etc/passwd", "a\nb", "\0", "<script>alert(1)</script>", "'; DROP TABLE ids; --"]


@pytest.mark.parametrize("own", [*HOSTILE, "x" * 100_000, "é\u202e{{7*7}}", 17])
def test_any_id_is_kept_as_it_is(own, ingest):
    ingest(write("pool.jsonl", row(0, id="first"), row(1, id=own)))
    assert [one["id"] for one in held().read_all(["id"])] == ["first", str(own)]
    assert sorted(path.name for path in Path().iterdir()) == ["pool.jsonl", "ws"]


@pytest.mark.parametrize(("first", "second"), [("a", "a"), (1, "1"), ("a\nb", "a\nb")])
@pytest.mark.parametrize("between", [0, 20])
def test_an_id_used_twice_is_refused_with_both_places(first, second, between, ingest):
    others = [row(i) for i in range(between)]
    file = write("pool.jsonl", row(1, id=first), *others, row(2, id=second))
    with pytest.raises(InputError) as refusal:
        ingest(file)
    assert str(refusal.value).startswith(f"pool.jsonl:{between + 2}: id {str(second)!r} ")
    assert "already used at pool.jsonl:1;" in str(refusal.value)


def ids():
    return [one["id"] for one in held().read_all(["id"])]


def test_ids_that_each_file_counts_from_0_are_qualified_by_the_file(ingest, caplog):
    for name in "abc":
        write(f"data/{name}.jsonl", *(row(f"{name}{i}", id=i) for i in range(12)))
    ingest("data")
    numbers = [str(i) for i in range(12)]
    assert ids() == [
        *numbers,
        *(f"data/b.jsonl#{i}" for i in numbers),
        *(f"data/c.jsonl#{i}" for i in numbers),
    ]
    said = [text for text in caplog.messages if "has ids that" in text]
    assert [text.partition(":")[0] for text in said] == ["data/b.jsonl", "data/c.jsonl"]


def test_qualified_ids_are_the_same_after_an_interruption(ingest, encoder, monkeypatch):
    for name in "ab":
        write(f"data/{name}.jsonl", *(row(f"{name}{i}", id=i) for i in range(12)))
    encode, calls = encoder.encode, []

    def until_killed(conversation):
        calls.append(1)
        if len(calls) == 20:  # in the second file, after two parts
            raise KeyboardInterrupt
        return encode(conversation)

    monkeypatch.setattr(encoder, "encode", until_killed)
    with pytest.raises(KeyboardInterrupt):
        ingest("data")
    monkeypatch.setattr(encoder, "encode", encode)
    ingest("data")
    assert ids() == [*map(str, range(12)), *(f"data/b.jsonl#{i}" for i in range(12))]


def test_an_id_that_a_file_repeats_is_refused_even_if_another_file_has_it(ingest):
    write("data/a.jsonl", row(0, id=0))
    write("data/b.jsonl", row(1, id=0), row(2, id=1), row(3, id=0))
    with pytest.raises(InputError, match=r"b\.jsonl:3: id '0' was already used at data/b\.jsonl:1"):
        ingest("data")


def test_the_last_turn_alone_is_kept_as_supervised(ingest):
    turns = [*row(1)["messages"], *row(2)["messages"]]
    ingest(write("pool.jsonl", {"messages": turns}), supervise="last")
    (one,) = held().read_all()
    assert Conversation.from_columns(one).supervised == [False, False, False, True]


def test_a_target_larger_than_sense_is_refused(ingest):
    file = write("val.jsonl", *(row(i) for i in range(10)))
    assert ingest(file, workspace="enough", max_rows=10)["rows"] == 10
    with pytest.raises(InputError, match=r"^val.jsonl: more than 9 rows; .*max_target_rows"):
        ingest(file, max_rows=9)


@pytest.mark.parametrize("name", [b"\xff.jsonl", b"a\nb.jsonl"])
def test_a_file_name_that_no_message_can_show_is_refused(name, g2is, refused, tiny_model):
    Path(os.fsdecode(name)).write_text(json.dumps(row(1)) + "\n")
    arguments = ["--model", tiny_model, "--workspace", "ws"]
    assert "rename it" in refused("ingest", "--pool", ".", *arguments)


# Resume


def files_of(part):
    return {path.name: path.stat().st_ino for path in Path("ws/pool").glob(f"part-0000{part}*")}


def contents():
    return [one["record"] for one in held().read_all(["record"])]


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "altered": lambda path: path.write_bytes(b"PAR0" + path.read_bytes()[4:]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
    "without its receipt": lambda path: path.with_suffix(".json").unlink(),
    "with a damaged receipt": lambda path: path.with_suffix(".json").write_text('{"rows"'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_only_a_damaged_part_is_made_again(damage, g2is, tiny_model):
    file = write("pool.jsonl", *(row(i) for i in range(20)), "{oops")
    given = ["--pool", file, "--model", tiny_model, "--workspace", "ws", "--max-rejected", "0.1"]
    arguments = ["ingest", *given, "--part-rows", 8, "--max-tokens", 64]
    g2is(*arguments)
    wanted, others = contents(), {**files_of(0), **files_of(2)}
    damage(Path("ws/pool/part-00001.parquet"))
    g2is(*arguments)
    assert contents() == wanted
    assert {**files_of(0), **files_of(2)} == others


def test_a_finished_pool_is_left_alone(g2is, tiny_model):
    file = write("pool.jsonl", *(row(i) for i in range(20)))
    arguments = ["ingest", "--model", tiny_model, "--workspace", "ws", "--pool", file]
    g2is(*arguments)
    before = {path: path.stat().st_ino for path in Path("ws").rglob("*")}
    g2is(*arguments)
    assert {path: path.stat().st_ino for path in Path("ws").rglob("*")} == before


def test_an_interrupted_ingest_goes_on_after_its_last_part(ingest, encoder, monkeypatch):
    file = write("pool.jsonl", "{oops", *(row(i) for i in range(30)))
    wanted = ingest(file, workspace="undisturbed", max_rejected=0.1)
    encode, calls = encoder.encode, []

    def until_killed(messages):
        if len(calls) == 19:
            raise KeyboardInterrupt
        calls.append(1)
        return encode(messages)

    monkeypatch.setattr(encoder, "encode", until_killed)
    with pytest.raises(KeyboardInterrupt):
        ingest(file, max_rejected=0.1)
    monkeypatch.setattr(encoder, "encode", encode)
    kept = {**files_of(0), **files_of(1)}
    assert kept
    found = ingest(file, max_rejected=0.1)
    assert {**files_of(0), **files_of(1)} == kept
    assert found | {"seconds": 0} == wanted | {"seconds": 0}
    assert contents() == [one["record"] for one in held("undisturbed").read_all(["record"])]


def test_a_damaged_part_is_named_to_those_who_read_it(ingest):
    ingest(write("pool.jsonl", *(row(i) for i in range(20))))
    shutil.copy("pool.jsonl", "ws/pool/part-00001.parquet")
    with pytest.raises(G2isError, match=r"part-00001\.parquet is damaged"):
        list(held().read_all())
