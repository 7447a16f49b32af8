"""What docs/security.md promises: hostile rows, planted files, other people's code."""

import ast
import io
import json
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jinja2.exceptions import SecurityError
from pool_files import row, write

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.config import ModelSettings
from g2is_ray.data.reading import Example, Rejected, read_examples
from g2is_ray.errors import InputError, WorkspaceError
from g2is_ray.models import loading
from g2is_ray.workspace.storage import Storage, array_bytes
from g2is_ray.workspace.workspace import Workspace

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def folder(empty_folder, monkeypatch):
    # transformers adds a folder for models' own code, as a Path, which hypothesis cannot take.
    monkeypatch.setattr(sys, "path", [*sys.path])
    return empty_folder


# Rows


def hostile(**more):
    """A row that is usable, and as bad as that allows."""
    text = "\x1b[2J\x1b]0;owned\x07\r\u202e{{ 7 * 7 }}{% raise %}<script>alert(1)</script>\x00"
    answer = {"role": "assistant", "content": text}
    return {**more, "messages": [{"role": "user\x1b[31m", "content": text}, answer], "source": text}


def test_a_hostile_pool_is_read_and_nothing_is_written_elsewhere(g2is, folder, tiny_model):
    names = ["../../escape", "/etc/escape", "a/../../../b", "\x1b[31m", "<script>", "{{ 7*7 }}"]
    write("pool.jsonl", *(hostile(id=name) for name in names))
    before = {path for path in folder.parent.rglob("*") if "ws" not in path.parts}
    g2is("ingest", "--pool", "pool.jsonl", "--model", tiny_model, "--workspace", "ws")
    assert {path for path in folder.parent.rglob("*") if "ws" not in path.parts} == before
    written = {path.name for path in (folder / "ws").rglob("*") if path.is_file()}
    whole = {"workspace.json", "part-00000.parquet", "part-00000.json", "receipt.json"}
    assert written == whole | {"events.jsonl", ".lock"}


def test_log_lines_hold_nothing_that_a_terminal_obeys(capsys, logging_as_before, tiny_model):
    from jobs.cli import main

    bad = {"messages": [{"role": "assistant", "content": [{"type": "\x1b[2J\u202e\nx"}]}]}
    write("pool.jsonl", *(row(i) for i in range(9)), bad)
    arguments = ["ingest", "--pool", "pool.jsonl", "--model", tiny_model, "--workspace", "ws"]
    assert main([*arguments, "--max-rejected", "0.5"]) == 0
    log = capsys.readouterr().err
    assert "rejected 1 rows, first pool.jsonl:10" in log
    assert all(character.isprintable() or character == "\n" for character in log)


def test_an_enormous_id_is_cut_in_what_is_said_of_it(refused, tiny_model):
    write("pool.jsonl", row(0, id="x" * 100_000), row(1, id="x" * 100_000))
    sentence = refused("ingest", "--pool", "pool.jsonl", "--model", tiny_model, "--workspace", "ws")
    assert "was already used at pool.jsonl:1" in sentence
    assert len(sentence) < 500


LIMITED = """
import resource, sys
from g2is_ray.data.reading import read_examples
rows = read_examples([sys.argv[1]])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
items = [type(item).__name__ for item in rows]
print(items.count("Example"), items.count("Rejected"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def read_limited(name):
    """Usable and rejected rows of a file, and by how many MiB reading it grew the process."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34)),
    )
    assert done.returncode == 0, done.stderr[-1000:]
    counts, grown = done.stdout.splitlines()
    return tuple(map(int, counts.split())), int(grown)


def test_a_parquet_file_of_kilobytes_cannot_fill_the_memory(folder):
    huge = pa.DictionaryArray.from_arrays([0] * 600, ["x" * 30_000_000])
    roles = pa.array(["user", "assistant"] * 300)
    turns = pa.StructArray.from_arrays([roles, huge], ["role", "content"])
    messages = pa.ListArray.from_arrays(range(0, 601, 2), turns)
    pq.write_table(pa.table({"messages": messages}), "pool.parquet", compression="zstd")
    assert Path("pool.parquet").stat().st_size < 100_000
    counts, grown = read_limited(str(folder / "pool.parquet"))
    assert counts == (0, 300)
    assert grown < 500


def test_a_gzip_file_of_kilobytes_cannot_fill_the_memory(folder):
    import gzip

    with gzip.open("pool.jsonl.gz", "wb") as out:
        out.write(json.dumps(row(0)).encode() + b"\n")
        for _ in range(300):
            out.write(b" " * 2**20)
        out.write(b"\n" + json.dumps(row(1)).encode())
    counts, grown = read_limited(str(folder / "pool.jsonl.gz"))
    assert counts == (2, 1)
    assert grown < 100


def test_a_row_of_numbers_beyond_any_range_is_read_or_rejected():
    turns = json.dumps(row(0)["messages"])
    extra = ['"x": NaN', '"x": -Infinity', '"x": 1e999', f'"x": {10**400}', f'"id": {10**400}']
    lines = [f'{{"messages": {turns}, {more}}}' for more in extra]
    deep = f'{{"messages": {turns}, "x": {"[" * 900}{"]" * 900}}}'
    twice = f'{{"messages": 3, "messages": {turns}}}'
    items = list(read_examples([write("pool.jsonl", *lines, twice, deep)]))
    assert all(isinstance(item, Example) for item in items[:6])
    assert isinstance(items[6], Example | Rejected)


# Files of a workspace


def load_calls(tree):
    """Names of called functions that end in load or loads, with their keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.rpartition(".")[2] in ("load", "loads", "safe_load"):
                yield name, {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_nothing_in_the_code_unpickles():
    sources = [
        path for room in ("g2is_ray", "actors", "jobs") for path in ROOT.glob(f"{room}/**/*.py")
    ]
    assert len(sources) > 40
    calls = [call for path in sources for call in load_calls(ast.parse(path.read_text()))]
    safe = {
        "json.load": {},
        "json.loads": {},
        "tl.load": {},  # Triton's, of a tensor
        "yaml.safe_load": {},
        "np.load": {"allow_pickle": "False"},
        "torch.load": {"weights_only": "True"},
    }
    assert {"json.loads", "np.load", "torch.load"} <= {name for name, _ in calls} <= set(safe)
    for name, keywords in calls:
        assert safe[name].items() <= keywords.items()
    imported = {
        alias.name
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not imported & {"cloudpickle", "joblib", "marshal", "shelve", "dill"}


class Planted:
    """Unpickled, it writes the file `owned`."""

    def __reduce__(self):
        return exec, ("open('owned', 'w').close()",)


def archive():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as out:
        out.writestr("x.npy", array_bytes(np.arange(3)))
    return packed.getvalue()


def objects():
    packed = io.BytesIO()
    np.save(packed, np.array([Planted()], dtype=object), allow_pickle=True)
    return packed.getvalue()


@pytest.mark.parametrize("data", [pickle.dumps(Planted()), objects(), archive()])
@pytest.mark.parametrize("read", [Storage.read_array, Storage.map_array])
def test_a_planted_array_is_refused_and_does_nothing(read, data, folder):
    workspace = Workspace("ws")
    workspace.storage.write_bytes("gradients/part-00000.npy", data)
    with pytest.raises(WorkspaceError, match=r"part-00000\.npy is damaged"):
        read(workspace.storage, "gradients/part-00000.npy")
    assert not (folder / "owned").exists()


# Code of others


@pytest.fixture
def model_with_code(folder):
    """A model directory whose own code would write the file `owned`."""
    model = folder / "model"
    model.mkdir()
    maps = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (model / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": maps}))
    (model / "code.py").write_text("open('owned', 'w').close()")
    return str(model)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_models_own_code_is_not_run_unless_asked_for(
    trusted, model_with_code, folder, monkeypatch
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder / "code")
    settings = ModelSettings(model=model_with_code, trust_remote_code=trusted)
    with pytest.raises(InputError):  # it has no model in either case
        loading.load_skeleton(settings)
    assert (folder / "owned").exists() == trusted


def test_a_model_whose_code_is_to_be_run_is_named(g2is, tiny_model, capsys):
    from jobs.cli import main

    write("pool.jsonl", *(row(i) for i in range(9)))
    arguments = ["ingest", "--pool", "pool.jsonl", "--model", tiny_model, "--workspace", "ws"]
    assert main([*arguments, "--trust-remote-code"]) == 0
    said = f"model {tiny_model}: Python code that comes with it will be run (trust_remote_code)"
    assert capsys.readouterr().err.count(said) == 1


def test_a_chat_template_runs_in_a_sandbox(tiny_model):
    tokenizer = loading.load_tokenizer(ModelSettings(model=tiny_model))
    tokenizer.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InputError, match="rejects the conversation") as refusal:
        ChatEncoder(tokenizer, max_tokens=64).encode(row(0)["messages"])
    assert isinstance(refusal.value.__cause__, SecurityError)


def test_a_row_is_never_taken_for_a_template(tiny_model):
    encoder = ChatEncoder(loading.load_tokenizer(ModelSettings(model=tiny_model)), max_tokens=256)
    ids = encoder.encode([{"role": "assistant", "content": "{{ 7 * 7 }}"}]).input_ids
    assert "{{ 7 * 7 }}" in encoder.tokenizer.decode(ids)
