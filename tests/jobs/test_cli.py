"""The `g2is` command: settings from flags and YAML, and one sentence for every error."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pool_files import row, write

from g2is_ray.config import fields_of
from jobs.cli import main
from jobs.commands import COMMANDS, STAGES
from jobs.flags import RENAMED
from jobs.ingest import ingest as read

FEW = ["--max-tokens", "200"]


@pytest.fixture(autouse=True)
def folder(empty_folder):
    write("pool.jsonl", *(row(i) for i in range(30)))
    write("val.jsonl", *(row(i) for i in range(4)))
    return empty_folder


@pytest.fixture
def ingest(tiny_model):
    """Arguments of an ingest into `ws`; those given replace the usual ones."""

    def arguments(*more, pool="pool.jsonl", model=tiny_model, workspace="ws"):
        given = ["--pool", pool, "--model", model, "--workspace", workspace]
        return ["ingest", *given, *FEW, *more]

    return arguments


def yaml_of(text, **more):
    lines = [text, *(f"{name}: {value}" for name, value in more.items())]
    Path("run.yaml").write_text("\n".join(lines))
    return ["ingest", "--config", "run.yaml", "--workspace", "ws"]


def receipt(stage):
    return json.loads(Path("ws", stage, "receipt.json").read_text())


# Settings


def test_every_command_says_what_it_takes(capsys):
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        shown = capsys.readouterr().out
        assert f"usage: g2is {name} " in shown
        for cls in command.settings:  # each group under its title
            title = cls.__doc__.splitlines()[0]
            assert f"\n{title}:\n" in shown
            assert all(f"--{setting.replace('_', '-')}" in shown for setting in fields_of([cls]))


def test_yaml_and_flags_have_the_same_names_and_flags_win(g2is, tiny_model):
    g2is(*yaml_of("pool: pool.jsonl", model=tiny_model, max_tokens=99), "--part-rows", "7")
    recorded = json.loads(Path("ws/workspace.json").read_text())["stages"]["pool"]["settings"]
    assert (recorded["max_tokens"], recorded["part_rows"]) == (99, 7)
    shutil.rmtree("ws")
    g2is(*yaml_of("pool: [pool.jsonl]", model=tiny_model, max_tokens=99), "--max-tokens", "98")
    recorded = json.loads(Path("ws/workspace.json").read_text())["stages"]["pool"]["settings"]
    assert recorded["max_tokens"] == 98


def test_hyphens_in_yaml_are_as_in_flags(g2is, tiny_model):
    g2is(*yaml_of("max-tokens: 99\npool: pool.jsonl", model=tiny_model))
    assert receipt("pool")["rows"] == 30


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("fractoin: 0.1", "run.yaml: there is no setting fractoin; did you mean fraction?"),
        ("max_tokes: 9", "run.yaml: there is no setting max_tokes; did you mean max_tokens?"),
        ("qqq: 1", "run.yaml: there is no setting qqq; `g2is run --help` lists the settings"),
        ("1: 2", "run.yaml: there is no setting 1; `g2is run --help` lists the settings"),
        ("- pool", "run.yaml: needs settings as `name: value` lines"),
        ("just text", "run.yaml: needs settings as `name: value` lines"),
    ],
)
def test_a_yaml_without_known_settings_is_refused(text, sentence, refused):
    assert refused(*yaml_of(text)) == sentence


@pytest.mark.parametrize("text", ["a: [1,", "\tpool: x", "[a]: 1", "[" * 900, "a: \x01"])
def test_what_is_not_yaml_is_refused_by_file(text, refused):
    assert refused(*yaml_of(text)).startswith("run.yaml: is not YAML: ")


def test_a_missing_yaml_is_refused_by_name(refused):
    sentence = refused("ingest", "--config", "none.yaml", "--workspace", "ws")
    assert sentence == "none.yaml: cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("max_tokens: many", "max_tokens should be a valid integer"),
        ("max_tokens: [1]", "max_tokens should be a valid integer"),
        ("max_tokens: yes", "max_tokens should not be yes or no"),
        ("pool: 3", "pool should "),
        ("pool: []", "pool should "),
        ("target: val.jsonl", "target should be a valid dictionary"),
        ("target: [val.jsonl]", "target should be a valid dictionary"),
        ("target: {1: val.jsonl}", "target should be a valid string, got 1"),
        ("target:", "target should be a valid dictionary, got None"),
        ("preset: [paper]", "preset should be recommended or paper"),
        ("preset: papre", "preset should be recommended or paper"),
        ("format: yaml", "format 'yaml' is not known"),
        ("workspace: [ws]", "workspace is not set"),
        # Settings of later stages die before the first one works.
        ("fraction: 7", "fraction should be less than or equal to 1, got 7"),
        ("delta: .nan", "delta should be a finite number"),
        ("seed: -1", "seed should be greater than or equal to 0"),
        ("baselines: [other]", "baselines should be paper, facility-location, walk, random, "),
    ],
)
def test_a_wrong_value_in_yaml_is_refused_before_any_work(setting, sentence, refused, tiny_model):
    base = {"model": tiny_model, "pool": "pool.jsonl"}
    base.pop(setting.partition(":")[0], None)
    arguments = yaml_of(setting, **base)
    if setting.startswith("workspace"):
        arguments = arguments[:3]
    assert refused(*arguments).startswith(sentence)
    assert not Path("ws/pool").exists()


@pytest.mark.parametrize("missing", ["pool", "model", "workspace"])
def test_a_missing_setting_is_asked_for(missing, ingest, refused):
    arguments = ingest()
    at = arguments.index(f"--{missing}")
    assert refused(*arguments[:at], *arguments[at + 2 :]).startswith(f"{missing} is not set: ")


@pytest.mark.parametrize("name", ["../up", "a/b", "..", ".hidden", "-x", "a@random", "é", "a\nb"])
def test_a_target_name_cannot_leave_its_folder(name, ingest, refused, folder):
    before = sorted(folder.parent.iterdir())
    sentence = refused(*ingest(f"--target={name}=val.jsonl"))
    assert sentence.startswith(f"target name {name!r} may hold letters")
    assert sorted(folder.parent.iterdir()) == before
    assert not Path("ws").exists()


@pytest.mark.parametrize("value", ["val.jsonl", "=val.jsonl", "name="])
def test_a_target_needs_name_and_file(value, ingest, refused):
    assert "--target needs NAME=FILE" in refused(*ingest("--target", value))


def test_a_test_without_its_target_is_refused(ingest, refused):
    sentence = refused(*ingest("--test", "math=val.jsonl"))
    assert sentence == "test math has no target of that name; give --target math=FILE"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("", "no command is given: `g2is run` runs the main job, and `g2is --help` lists all"),
        ("rnu", "there is no command rnu; did you mean run?"),
        ("zzz", "there is no command zzz; `g2is --help` lists the commands"),
        ("run --taget a=b", "`g2is run` has no flag --taget; did you mean --target?"),
        ("run --max-tokns=9", "`g2is run` has no flag --max-tokns; did you mean --max-tokens?"),
        ("tune --pool x", "`g2is tune` has no flag --pool; it is a flag of run, ingest, submit"),
        ("run --zzz", "`g2is run` has no flag --zzz; `g2is run --help` lists all"),
        ("run x.jsonl", "`g2is run` does not take 'x.jsonl': values follow a flag, as in --pool"),
        ("run --max-tokens", "argument --max-tokens: expected one argument; `g2is run --help`"),
        ("run --preset x", "argument --preset: invalid choice: 'x' (choose from "),
        ("run", "workspace, pool, model and target are not set: give `g2is run --workspace "),
        ("run --pool x", "workspace, model and target are not set: give `g2is run --workspace "),
        ("run --workspace ws", "pool is not set: give --pool. "),
        ("select", "workspace is not set: give --workspace DIRECTORY_OR_URL"),
        ("submit --workspace s3://a/b", "address should be the URL of the cluster's dashboard"),
    ],
)
def test_a_command_line_that_cannot_be_run_is_told_the_next_step(arguments, sentence, refused):
    assert refused(*arguments.split()).startswith(sentence)


def test_a_first_run_without_a_target_reads_nothing(ingest, refused):
    arguments = ["run", *ingest()[1:]]
    assert refused(*arguments) == "target is not set: give --target NAME=FILE at least once"
    assert not Path("ws/pool").exists()


@pytest.mark.parametrize("name", RENAMED)
def test_a_renamed_setting_is_refused_with_its_new_name(name, refused):
    old, new = (f"--{one.replace('_', '-')}" for one in (name, RENAMED[name]))
    assert refused("run", old, "9") == f"{old} is called {new} now"
    assert refused(*yaml_of(f"{name}: 9")) == (
        f"run.yaml: the setting {name} is called {RENAMED[name]} now"
    )
    assert fields_of(STAGES).keys() & {name, RENAMED[name]} == {RENAMED[name]}


def test_settings_of_every_command_may_stand_in_one_file(g2is, tiny_model):
    more = "pool: pool.jsonl\nmethods: [random]\nseeds: [1]\nreference: random"
    g2is(*yaml_of(more, model=tiny_model), *FEW)
    assert receipt("pool")["rows"] == 30


# Start-up

HEAVY = ["torch", "ray", "transformers", "peft", "sklearn", "scipy", "datasets", "aiohttp"]

IMPORTED = """
import sys, g2is
try:
    status = g2is.main()
except SystemExit as end:
    status = end.code
print(status, *(name for name in sys.argv[-1].split(",") if name in sys.modules))
"""


def imported(*arguments):
    """Exit status of `g2is`, and the libraries of `HEAVY` that it has imported."""
    program = IMPORTED.replace("sys.argv[-1]", repr(",".join(HEAVY)))
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True
    )
    status, *names = done.stdout.splitlines()[-1].split()
    return int(status), names


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("--help", 0),
        ("--version", 0),
        ("run --help", 0),
        ("run --taget a=b", 2),
        ("run --fraction 7 --workspace ws", 2),
        ("run --workspace ws", 2),
        ("select --workspace ws", 2),
    ],
)
def test_a_command_without_work_imports_no_heavy_library(arguments, status):
    assert imported(*arguments.split()) == (status, [])


def test_status_imports_no_heavy_library(ingest, g2is):
    g2is(*ingest())
    assert imported("status", "ws") == (0, [])


# Models


def broken_model(kind, tiny_model):
    if kind == "nowhere":
        return "./no/such/folder"
    if kind == "not on the hub":
        return "no-such-organization/no-such-model"
    Path("model").mkdir()
    if kind == "a file":
        return "pool.jsonl"
    if kind != "an empty folder":
        Path("model/config.json").write_text(Path(tiny_model, "config.json").read_text())
    if kind == "a damaged config":
        Path("model/config.json").write_text("{oops")
    if kind == "a config of another kind":
        Path("model/config.json").write_text("[]")
    if kind == "a damaged tokenizer":
        shutil.copy(Path(tiny_model, "tokenizer_config.json"), "model")
        Path("model/tokenizer.json").write_text("{}")
    return "model"


@pytest.mark.parametrize(
    "kind",
    [
        "nowhere",
        "not on the hub",
        "a file",
        "an empty folder",
        "a damaged config",
        "a config of another kind",
        "no tokenizer",
        "a damaged tokenizer",
    ],
)
def test_a_model_that_is_not_there_is_named(kind, ingest, refused, tiny_model):
    model = broken_model(kind, tiny_model)
    sentence = refused(*ingest(model=model))
    assert sentence.startswith("model ")
    assert model.removeprefix("./") in sentence


# Commands on a workspace


JOBS = [n for n, one in COMMANDS.items() if one.access in ("reads", "writes")]


@pytest.mark.parametrize("command", [name for name in JOBS if name not in ("run", "ingest")])
def test_a_command_without_a_workspace_says_what_makes_one(command, refused):
    sentence = refused(command, "--workspace", "none")
    assert sentence == "none is not a workspace; `g2is ingest` or `g2is run` makes one"
    assert not Path("none").exists()


@pytest.mark.parametrize(
    ("command", "earlier"),
    [
        ("gradients", "warmup"),
        ("graph", "gradients"),
        ("select", "graph"),
        ("tune", "select"),
        ("report", "select"),
    ],
)
def test_a_stage_names_the_one_it_waits_for(command, earlier, ingest, g2is, refused):
    g2is(*ingest("--target", "t=val.jsonl"))
    assert f"run `g2is {earlier} --workspace ws` first" in refused(command, "--workspace", "ws")


def test_sizes_are_refused_before_the_hours_they_would_cost(ingest, refused, monkeypatch):
    later = [("ingest", read), ("later", lambda session: pytest.fail("a later stage began"))]
    monkeypatch.setattr("jobs.main_job.stages", lambda tasks: later)
    arguments = ["run", *ingest("--target", "t=val.jsonl", "--fraction", "0.5")[1:]]
    assert refused(*arguments) == "neighbors must be below the number of rows, 30, got 32"
    sentence = refused(*arguments, "--neighbors", "5", "--fraction", "0.01")
    assert sentence == "fraction 0.01 of 30 rows is less than one row; raise fraction"


def test_status_shows_every_stage(ingest, g2is):
    g2is(*ingest("--target", "t=val.jsonl"))
    lines = {line.split()[0]: line for line in g2is("status", "--workspace", "ws").splitlines()}
    assert lines["pool"].split()[1:5] == ["1/1", "done,", "30", "rows,"]
    assert "done, 4 rows" in lines["targets/t/val"]
    for stage in ("warmup", "gradients", "graph", "selections/t", "tuned/t", "evaluations/t"):
        assert lines[stage].endswith("to do")


@pytest.mark.parametrize("workspace", ["ws", "memory://ws-of-status"])
def test_status_needs_the_workspace_only(workspace, ingest, g2is):
    g2is(*ingest(workspace=workspace))
    shown = g2is("status", workspace)
    assert shown == g2is("status", "--workspace", workspace)
    assert "done, 30 rows" in shown


def test_an_error_is_one_line_whatever_the_names_hold(ingest, refused):
    name = "a\nb\x1b[31m.jsonl"
    write(name, "{oops")
    assert "\x1b" not in refused(*ingest(pool=name))


def test_the_installed_command_exits_with_2_and_no_traceback():
    command = shutil.which("g2is", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    assert command, "g2is is not installed beside this Python"
    done = subprocess.run(
        [command, "status", "--workspace", "none"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("g2is: error: none is not a workspace")
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(ingest):
    from g2is_ray.errors import InputError

    with pytest.raises(InputError):
        main(ingest("--debug", pool="none.jsonl"))


def test_test_rows_of_another_length_than_the_target_are_pointed_out(
    ingest, logging_as_before, capsys
):
    write("long.jsonl", *(row("1, " * 30) for _ in range(3)))
    for test, pointed_out in (("val.jsonl", False), ("long.jsonl", True)):
        given = ["--target", "law=val.jsonl", "--test", f"law={test}"]
        assert main(ingest(*given, workspace=f"for-{test}")) == 0
        assert ("target law: its rows have" in capsys.readouterr().err) == pointed_out
