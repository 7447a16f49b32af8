"""The Python API: the command line's settings and errors, as typed functions."""

import doctest
import inspect
import logging
import signal
import subprocess
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from main_job import DATA, ROOT, head

import g2is_ray
import jobs
from g2is_ray import Selector, Workspace, best_first, read_selection, round_robin
from g2is_ray.errors import G2isError, InputError, SettingError, WorkspaceError
from jobs import compare, keywords, run, select
from jobs.commands import COMMANDS, perform
from jobs.result import RunResult, TargetResult

ARGUMENTS = {
    "run": keywords.RunArguments,
    "select": keywords.SelectArguments,
    "compare": keywords.CompareArguments,
}
MAY_BE_CLASSES = ("selector", "baselines", "methods")


def read_pool(folder: Path) -> str:
    """A workspace that has read 30 rows of the pool, and a target."""
    pool = head(DATA / "pool.jsonl", 30, folder / "pool.jsonl")
    val = head(DATA / "target-gsm8k-val.jsonl", 6, folder / "val.jsonl")
    values = {"pool": [str(pool)], "target": {"gsm8k": str(val)}, "max_tokens": 640}
    model = str(ROOT / "examples" / "tiny-lm")
    perform("ingest", {**values, "workspace": str(folder / "ws"), "model": model})
    return str(folder / "ws")


@pytest.fixture(scope="module")
def ingested(tmp_path_factory) -> str:
    return read_pool(tmp_path_factory.mktemp("api"))


def as_keyword(annotation, name: str):
    """The type of a keyword argument for a setting of this type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        return Sequence[str | type[Selector] if name in MAY_BE_CLASSES else arguments[0]]
    if origin is dict:
        return Mapping[arguments]
    return annotation | type[Selector] if name in MAY_BE_CLASSES else annotation


@pytest.mark.parametrize("command", ARGUMENTS)
def test_keywords_are_the_settings_of_the_command_line(command):
    wanted = {"preset": typing.Literal["recommended", "paper"]}
    for cls in COMMANDS[command].settings:
        hints = typing.get_type_hints(cls)
        wanted |= {name: as_keyword(hint, name) for name, hint in hints.items()}
    found = typing.get_type_hints(ARGUMENTS[command], localns={"Selector": Selector})
    assert found == wanted


def test_every_public_name_is_there_and_has_a_docstring():
    for module in (g2is_ray, jobs):
        for name in module.__all__:
            assert name == "__version__" or inspect.getdoc(getattr(module, name)), name
    with pytest.raises(AttributeError, match="has no attribute 'walk_arrays'"):
        _ = jobs.walk_arrays


class Printed(doctest.OutputChecker):
    """Compares what an example printed, without the lines that Ray forwards from its workers."""

    def check_output(self, want, got, optionflags):
        lines = got.splitlines(keepends=True)
        own = "".join(line for line in lines if not line.startswith("\x1b[36m("))
        return super().check_output(want, own, optionflags)


def run_example(of: object, workspace: str) -> None:
    """Run the example in a docstring, from the root of the repository."""
    (test,) = doctest.DocTestFinder(recurse=False).find(of, globs={"workspace": workspace})
    assert test.examples
    runner = doctest.DocTestRunner(Printed(), optionflags=doctest.FAIL_FAST)
    runner.run(test)
    assert not runner.failures


def test_the_examples_of_select_and_read_selection(ingested, monkeypatch):
    monkeypatch.chdir(ROOT)
    run_example(select, ingested)
    run_example(read_selection, ingested)


class Longest(Selector):
    """Rows with the most supervised tokens."""

    reads = frozenset({"tokens"})

    def picks(self, pool, target, products):
        return best_first(pool.tokens * 1.0, pool.free)


def test_a_class_selects_what_its_name_selects(ingested):
    name = f"{__file__}:Longest"
    by_class = select(ingested, selector=Longest, baselines=[], fraction=0.2, redo="selections")
    by_name = select(ingested, selector=name, baselines=[], fraction=0.2, redo="selections")
    rows = [row.row for row in by_class["gsm8k"]]
    assert rows == [row.row for row in by_name["gsm8k"]]
    assert len(rows) == 6
    assert read_selection(Workspace(ingested), "gsm8k") == by_name["gsm8k"]


def test_a_class_whose_source_is_not_known_is_refused(ingested):
    space = {"Selector": Selector, "round_robin": round_robin, "__name__": "typed"}
    exec(inspect.getsource(Longest).replace("tokens", "texts"), space)
    with pytest.raises(InputError, match="selector typed:Longest: its source cannot be read"):
        select(ingested, selector=space["Longest"], redo=["selections"])


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda ws: run(ws, fracton=1), SettingError, "run has no setting fracton; did you mean"),
        (lambda ws: run(ws, token_budget=1), SettingError, "token_budget is called batch_tokens"),
        (lambda ws: run(ws, fraction=7), SettingError, "fraction should be less than or equal"),
        (lambda ws: run(ws, preset="x"), SettingError, "preset should be recommended or paper"),
        (lambda ws: select(ws, selector=int), SettingError, "selector should derive from g2is_ray"),
        (lambda ws: compare(ws, methods=["random"]), SettingError, "has no test rows"),
        (lambda ws: compare("none"), InputError, "none is not a workspace"),
        (lambda ws: read_selection(ws, "no"), WorkspaceError, "has no finished selections/no yet"),
    ],
)
def test_errors_are_those_of_the_command_line(call, error, sentence, ingested):
    with pytest.raises(error, match=sentence) as refusal:
        call(ingested)
    assert isinstance(refusal.value, G2isError)


def test_signals_and_logging_stay_as_they_are(ingested):
    def state():
        root = logging.getLogger()
        handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
        return root.level, root.handlers[:], handlers

    before = state()
    select(ingested, selector="tfidf", baselines=[], redo=["selections"])
    assert state() == before


def test_importing_the_api_imports_no_heavy_library():
    program = "import g2is_ray, jobs, sys; from g2is_ray import Workspace, read_selection; "
    program += "from jobs import run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not {"torch", "ray", "transformers"} & set(done.stdout.split())


@pytest.mark.ray
@pytest.mark.slow
def test_the_examples_of_run_and_compare(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    run_example(run, str(tmp_path))
    run_example(compare, str(tmp_path))


@pytest.mark.ray
def test_a_ray_that_is_initialized_already_stays_up(monkeypatch):
    import ray

    from actors.connection.cluster import connected

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray is initialized again"))
    monkeypatch.setattr(ray, "shutdown", lambda: pytest.fail("Ray is shut down"))
    for address in ("", "local", "auto"):
        with connected(address):
            pass


def test_a_result_is_three_lines():
    target = TargetResult(
        rows=1200,
        supervised_tokens=34567,
        selected="ws/selections/t/selected.jsonl",
        losses={"base": 2.0, "selection": 1.25, "random": 1.5},
        exact_matches={},
    )
    result = RunResult(workspace="ws", report="ws/report.html", targets={"t": target})
    assert str(result).splitlines() == [
        "selected   t: 1,200 rows with 34,567 supervised tokens, in ws/selections/t/selected.jsonl",
        "test loss  t: base 2.0000, selection 1.2500, random 1.5000. One seed: `g2is compare` adds "
        "intervals",
        "report     ws/report.html",
    ]
