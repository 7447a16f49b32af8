"""`g2is export`: what other trainers read from it, and what it does not write over."""

import itertools
import json
import shutil
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import get_args

import pytest
import yaml
from datasets import load_dataset, load_from_disk
from transformers import AutoTokenizer

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.data.export import Format, columns_of, write_selections
from g2is_ray.data.reading import read_examples
from g2is_ray.data.sources import expand
from g2is_ray.workspace.storage import Storage
from g2is_ray.workspace.workspace import STAGE_RECEIPT, Workspace
from jobs.ingest import ingest
from jobs.session import Session

FORMATS = get_args(Format)
PICKS = {"math": [6, 0, 4, 5, 1, 2, 3], "math@random": [3, 1], "sql": [5]}


def chat(turns, *texts):
    """A conversation; `turns` has the first letter of each role."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[turn], "content": text} for turn, text in zip(turns, texts, strict=True)]


CONVERSATIONS = [
    chat("ua", "Add 2 and 2.", "It is four.\n\u2028Voilà \x00\U0001f600"),
    chat("sua", "Be brief.", "2024-01-01", "A day."),
    chat("uata", "What is 2 + 2?", "add(2, 2)", "4", "It is four."),
    chat("aua", "Hello.", "Hi.", "What is it?"),
    chat("uau", "Hi.", "Hello.", "Thanks."),
    chat("ua", "Translate.\n\nYes", "Oui"),
    chat("ua", "And?", "No more."),
]
SKIPPED = [3, 4]  # by LLaMA-Factory: the assistant begins, the user ends
POOL = {
    "a.jsonl": [{"prompt": "Add 2 and 2.", "completion": CONVERSATIONS[0][1:]}],
    "b.jsonl": [{"messages": messages, "source": "own"} for messages in CONVERSATIONS[1:5]],
    "c.jsonl": [{"instruction": "Translate.", "input": "Yes", "output": "Oui"}],
    "d.jsonl": [
        {
            "conversations": [
                {"from": "human", "value": "And?"},
                {"from": "gpt", "value": "No more."},
            ]
        }
    ],
}
SOURCES = ["a", "own", "own", "own", "own", "c", "d"]


def picked(name):
    """What an export of the selection is to hold."""
    return [
        {"id": f"row-{row}", "source": SOURCES[row], "messages": CONVERSATIONS[row]}
        for row in PICKS[name]
    ]


def write_selection(held, name, rows):
    stage = f"selections/{name}"
    held.stage(stage).begin({}, ["pool"])
    lines = "".join(json.dumps({"row": row}) + "\n" for row in rows).encode()
    held.stage(stage).commit(STAGE_RECEIPT, {"selection.jsonl": lines}, {"selected": len(rows)})


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model):
    """A workspace with a pool of all schemas, in parts, and selections of it."""
    folder = tmp_path_factory.mktemp("made")
    numbers = itertools.count()
    for name, rows in POOL.items():
        lines = [json.dumps({"id": f"row-{next(numbers)}", **row}) for row in rows]
        (folder / name).write_text("\n".join(lines))
    settings = {"pool": [str(folder / "*.jsonl")], "model": tiny_model, "part_rows": 2}
    with Session(str(folder / "ws"), settings).writing("ingest") as session:
        ingest(session)
        for name, rows in PICKS.items():
            write_selection(session.workspace, name, rows)
    return folder / "ws"


@pytest.fixture
def ws(made, empty_folder):
    """A copy of that workspace, in the current folder."""
    shutil.copytree(made, "ws")
    return Workspace("ws")


def export(format="trl", *more, output="out"):
    return "export", "--workspace", "ws", "--format", format, "--output", output, *more


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def load(format, name, output="out"):
    """The exported selection as its readers load it."""
    if format == "hf-dataset":
        return load_from_disk(f"{output}/{name}")
    path = f"{output}/{name}.jsonl"
    if format == "llama-factory":
        path = (
            f"{output}/"
            + json.loads(Path(output, "dataset_info.json").read_text())[name]["file_name"]
        )
    if format == "axolotl":
        [entry] = yaml.safe_load(Path(output, f"{name}.yaml").read_text())["datasets"]
        path = entry["path"]
    return load_dataset("json", data_files=path, split="train", cache_dir="cache")


# What is written


@pytest.mark.parametrize("format", FORMATS)
def test_every_schema_is_read_as_conversations_in_the_order_of_picking(format, ws, g2is):
    g2is(*export(format))
    for name in ("math", "sql"):
        assert load(format, name).to_list() == picked(name)


def test_comparisons_are_exported_when_named(ws, g2is):
    g2is(*export("trl"))
    assert sorted(files("out")) == ["math.jsonl", "sql.jsonl"]
    g2is(*export("trl", "--target", "math@random"))
    assert load("trl", "math@random").to_list() == picked("math@random")


@pytest.mark.parametrize("format", FORMATS)
def test_the_output_may_be_a_url(format, ws, g2is):
    g2is(*export(format))
    g2is(*export(format, output=f"memory://out-{format}"))
    with Workspace(f"memory://out-{format}").storage.local_folder("") as copy:
        assert files(copy).keys() == files("out").keys()
        if format == "hf-dataset":
            assert load_from_disk(copy / "math").to_list() == picked("math")


def test_llama_factorys_entry_has_documented_keys_and_values(ws, g2is):
    g2is(*export("llama-factory", "--target", "sql"))
    assert json.loads(Path("out/dataset_info.json").read_text()) == {
        "sql": {
            "file_name": "sql.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "observation_tag": "tool",
                "system_tag": "system",
            },
        }
    }


def test_llama_factorys_other_entries_stay(ws, g2is):
    Path("out").mkdir()
    Path("out/dataset_info.json").write_text('{"alpaca": {"file_name": "é.json"}}')
    g2is(*export("llama-factory", "--target", "sql"))
    g2is(*export("llama-factory", "--target", "math"))
    held = json.loads(Path("out/dataset_info.json").read_text())
    assert list(held) == ["alpaca", "sql", "math"]
    assert held["alpaca"] == {"file_name": "é.json"}


def test_it_warns_of_what_llama_factory_skips(tmp_path, caplog):
    write_selections({"math": picked("math")}, "llama-factory", Storage(str(tmp_path)))
    [warning] = caplog.messages
    assert f"will skip {len(SKIPPED)} of the 7 conversations of math" in warning
    write_selections({"sql": picked("sql")}, "llama-factory", Storage(str(tmp_path)))
    assert caplog.messages == [warning]


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
SAYING_MORE = [
    {
        "messages": [
            {"role": "user", "content": "Add."},
            {"role": "assistant", "content": "What?", "train": False},
            {"role": "user", "content": "2."},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "4", "name": "add"},
            {"role": "assistant", "content": "4", "reasoning_content": "Two and two."},
        ],
        "tools": [{"type": "function", "function": {"name": "add"}}],
        "chat_template_kwargs": {"enable_thinking": True},
    },
    {"prompt": "Hi.", "completion": "Hello."},
]


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_is_read_again_as_what_it_was(format, tmp_path, caplog):
    source = tmp_path / "pool.jsonl"
    source.write_text("\n".join(map(json.dumps, SAYING_MORE)))
    before = [one.conversation for one in read_examples([str(source)])]
    rows = [{"id": str(i), "source": "s", **columns_of(one)} for i, one in enumerate(before)]
    write_selections({"math": rows}, format, Storage(str(tmp_path / "out")))
    after = list(read_examples(expand([str(tmp_path / "out")])))
    assert [one.conversation for one in after] == before
    assert ("with train, which readers" in caplog.text) == (format != "axolotl")


# What is refused


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_written_over_unless_told(format, ws, g2is, refused):
    g2is(*export(format, "--target", "math"))
    write_selection(ws, "math", [5])
    before = files("out")
    assert "--overwrite" in refused(*export(format))
    assert files("out") == before
    g2is(*export(format, "--overwrite"))
    assert load(format, "math").to_list() == picked("sql")
    assert before.keys() <= files("out").keys()


@pytest.mark.parametrize(
    ("held", "problem"),
    [
        ('{"math": {}}', "has an entry math: give --overwrite to replace it"),
        ("[]", "is not a JSON object"),
        ("{oops", "is not a JSON object"),
        ("[" * 100_000, "is not a JSON object"),
    ],
)
def test_an_index_that_cannot_take_the_entry_is_named(held, problem, ws, refused):
    Path("out").mkdir()
    Path("out/dataset_info.json").write_text(held)
    assert f"out/dataset_info.json {problem}" in refused(*export("llama-factory"))
    assert list(files("out")) == ["dataset_info.json"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ["--target", "law"],
            "target law names no selection of ws; there are math, math@random, sql",
        ),
        (
            ["--format", "parquet"],
            "format should be 'llama-factory', 'trl', 'axolotl' or 'hf-dataset'",
        ),
        (["--workspace", "none"], "none holds no selection; `g2is run` makes one"),
        (["--output", "nowhere://x"], "nowhere://x cannot be opened"),
        (["--output", "ws/workspace.json"], "cannot be written"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_sentence(change, sentence, ws, refused):
    assert sentence in refused(*export(), *change)


def test_an_unfinished_or_damaged_selection_is_refused(ws, refused):
    write_selection(ws, "law", [])
    assert "selections/law is empty" in refused(*export("trl", "--target", "law"))
    lines = ws.storage.read_bytes("selections/math/selection.jsonl").splitlines(keepends=True)
    ws.storage.write_bytes("selections/math/selection.jsonl", b"".join(lines[:-1]))
    assert "is damaged" in refused(*export("trl", "--target", "math"))
    ws.storage.remove("selections/sql/receipt.json")
    assert "run `g2is select --workspace ws` first" in refused(*export("trl", "--target", "sql"))
    assert not Path("out").exists()


# What the trainers' own code makes of it; `.ci/run` installs them beside the environment


@pytest.fixture
def encoder(tiny_model):
    return ChatEncoder(AutoTokenizer.from_pretrained(tiny_model), max_tokens=512)


@pytest.mark.trainers
def test_trl_gives_the_model_the_same_tokens(ws, g2is, encoder, tiny_model):
    trl = pytest.importorskip("trl")
    g2is(*export("trl"))
    arguments = trl.SFTConfig("trained", use_cpu=True, bf16=False, report_to="none")
    trainer = trl.SFTTrainer(tiny_model, arguments, train_dataset=load("trl", "math"))
    assert list(trainer.train_dataset["input_ids"]) == [
        encoder.encode(row["messages"]).input_ids for row in picked("math")
    ]


@pytest.mark.trainers
def test_axolotl_trains_on_the_same_tokens(ws, g2is, encoder):
    strategies = pytest.importorskip("axolotl.prompt_strategies.chat_template")
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.datasets import SFTDataset

    g2is(*export("axolotl"))
    [entry] = yaml.safe_load(Path("out/math.yaml").read_text())["datasets"]
    assert entry.keys() <= SFTDataset.model_fields.keys()
    strategy = strategies.load(
        encoder.tokenizer, DictDefault(sequence_len=512), SFTDataset(**entry)
    )
    for row in load("axolotl", "math"):
        read, wanted = strategy.tokenize_prompt(row), encoder.encode(row["messages"])
        assert (read["input_ids"], read["labels"]) == (wanted.input_ids, wanted.labels)


@pytest.mark.trainers
def test_llama_factory_reads_all_but_those_that_it_skips(ws, g2is, monkeypatch):
    audio = types.ModuleType("torchaudio")  # imported at once, and not used for text
    audio.__spec__ = ModuleSpec("torchaudio", None)
    monkeypatch.setitem(sys.modules, "torchaudio", audio)
    parser = pytest.importorskip("llamafactory.data.parser")
    from llamafactory.data.converter import get_dataset_converter

    g2is(*export("llama-factory"))
    [attributes] = parser.get_dataset_list(["math"], "out")
    convert = get_dataset_converter(attributes.formatting, attributes, None)
    for number, row in zip(PICKS["math"], map(convert, load("llama-factory", "math")), strict=True):
        system = [{"role": "system", "content": row["_system"]}] if row["_system"] else []
        wanted = [
            turn | {"role": turn["role"].replace("tool", "observation")}
            for turn in CONVERSATIONS[number]
        ]
        read = [*system, *row["_prompt"], *row["_response"]]
        assert read == ([] if number in SKIPPED else wanted)
