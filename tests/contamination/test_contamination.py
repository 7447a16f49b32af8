"""Test rows in a pool: said when they are read, never selected, and said in the report."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_views import Page
from selection_workspace import PART_ROWS, PARTS, make_workspace, write_rows

from g2is_ray.contamination.stage import overlaps, rows_like_tests, write_overlap
from g2is_ray.data.examples import ExampleSet
from g2is_ray.selector.registry import NAMES
from g2is_ray.workspace.workspace import Workspace
from jobs.cli import main

DATA = Path(__file__).parents[2] / "examples" / "data"
POOL_ROWS, TEST_ROWS, VAL_ROWS = 60, 12, 6


def read(name: str, rows: int) -> list[dict]:
    lines = (DATA / f"{name}.jsonl").read_text().splitlines()[:rows]
    return [json.loads(line) for line in lines]


def texts(row: dict) -> tuple[str, str]:
    question, answer = (message["content"] for message in row["messages"][-2:])
    return question, answer


def messages(*turns: str) -> dict:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]}


COPIES: list[Callable[[str, str], dict]] = [  # one schema
    lambda q, a: messages(q, a),
    lambda q, a: messages(q.upper(), a.lower()),
    lambda q, a: messages(" ".join(f"{word} " for word in q.split()), a.replace("\n", " ")),
    lambda q, a: messages(f"**Question:** {q}\n\nAnswer:", a),
    lambda q, a: messages("Hello!", "Hello, what is it?", q, a, "Thank you.", "You are welcome."),
    lambda q, a: messages(f"Solve this, step by step, as well as you can. {q} Be brief.", "12"),
]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool with all test rows in it, each copied in another way, and the sets themselves."""
    folder = tmp_path_factory.mktemp("files")
    pool, tests = read("pool", POOL_ROWS), read("target-gsm8k-test", TEST_ROWS)
    copies = [COPIES[n % len(COPIES)](*texts(row)) for n, row in enumerate(tests)]
    write(folder / "pool.jsonl", [*pool[:30], *copies, *pool[30:]])
    write(folder / "test.jsonl", tests)
    write(folder / "val.jsonl", read("target-gsm8k-val", VAL_ROWS))
    return folder


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], logging_as_before: None) -> Callable[..., str]:
    """Runs `g2is` with arguments that it is to accept; returns what it logged."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().err

    return run


BY_CHANCE = ["--selector", "random"]
LEAKED = [*range(30, 30 + TEST_ROWS)]


def ingest(files: Path, tiny_model: str, workspace: Path, *more: str) -> list[str]:
    sets = [] if "--target" in more else ["--target", f"m={files}/val.jsonl"]
    sets += [] if "--test" in more else ["--test", f"m={files}/test.jsonl"]
    model = ["--model", tiny_model, "--max-tokens", "512", "--workspace", str(workspace)]
    pool = [] if "--pool" in more else ["--pool", f"{files}/pool.jsonl"]
    return ["ingest", *pool, *sets, *model, *more]


def picks(workspace: Path, variant: str) -> list[int]:
    lines = (workspace / f"selections/{variant}/selection.jsonl").read_text().splitlines()
    return [json.loads(line)["row"] for line in lines]


def test_no_test_row_is_selected_and_the_report_says_so(
    files, tiny_model, tmp_path, g2is, told, refused
):
    lines = told(*ingest(files, tiny_model, tmp_path)).splitlines()
    (warning,) = [line for line in lines if " overlap: " in line]
    assert f"{TEST_ROWS} of the {TEST_ROWS} test rows of m are in the pool: 10 word for" in warning
    assert f"{files}/pool.jsonl:31 is like {files}/test.jsonl:1" in warning
    there = ["--workspace", str(tmp_path)]
    chosen = ["--selector", "tfidf", "--baselines", "random", "bm25", "--fraction", "1"]
    g2is("select", *chosen, *there)
    rest = sorted(set(range(POOL_ROWS + TEST_ROWS)) - set(LEAKED))
    for variant in ("m", "m@random", "m@bm25"):
        assert sorted(picks(tmp_path, variant)) == rest
        summary = json.loads((tmp_path / f"selections/{variant}/summary.json").read_text())
        assert (summary["like_tests"], summary["selected_like_tests"]) == (TEST_ROWS, 0)
    g2is("report", *there)
    page = Page((tmp_path / "report.html").read_text()).text
    assert f"{TEST_ROWS} of the {TEST_ROWS} test rows of m are in the pool" in page
    assert "No selected row is like a test row." in page
    assert "memorization" not in page
    sentence = refused("select", *chosen, "--allow-overlap", *there)
    assert sentence.startswith("selections/m was made with allow_overlap false, now it is true")


def test_test_rows_that_are_asked_for_are_selected_and_the_report_shouts(
    files, tiny_model, tmp_path, g2is
):
    g2is(*ingest(files, tiny_model, tmp_path))
    there = ["--workspace", str(tmp_path)]
    g2is("select", "--selector", "tfidf", "--fraction", "1", "--allow-overlap", *there)
    assert set(LEAKED) < set(picks(tmp_path, "m"))
    summary = json.loads((tmp_path / "selections/m/summary.json").read_text())
    assert summary["selected_like_tests"] == TEST_ROWS
    g2is("report", *there)
    page = Page((tmp_path / "report.html").read_text()).text
    assert f"{TEST_ROWS} of the {POOL_ROWS + TEST_ROWS} rows of selection" in page
    assert "memorization" in page


def test_what_is_found_depends_neither_on_parts_nor_on_an_append(files, tiny_model, tmp_path, g2is):
    lines = (files / "pool.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "first.jsonl").write_text("".join(lines[:35]))
    (tmp_path / "rest.jsonl").write_text("".join(lines[35:]))
    whole, parted, grown = (tmp_path / name for name in ("whole", "parted", "grown"))
    g2is(*ingest(files, tiny_model, whole))
    g2is(*ingest(files, tiny_model, parted, "--part-rows", "7"))
    first = ["--pool", f"{tmp_path}/first.jsonl"]
    g2is(*ingest(files, tiny_model, grown, "--part-rows", "9", *first))
    assert rows_like_tests(Workspace(str(grown))).sum() == 5
    g2is("select", "--selector", "random", "--fraction", "0.5", "--workspace", grown)
    g2is("ingest", "--append", f"{tmp_path}/rest.jsonl", "--workspace", grown)
    expected = (whole / "overlap/matches.jsonl").read_bytes()
    for other in (parted, grown):
        assert (other / "overlap/matches.jsonl").read_bytes() == expected
    g2is("select", "--selector", "random", "--fraction", "0.5", "--workspace", grown)
    assert len(picks(grown, "m")) == 36
    assert not set(picks(grown, "m")) & set(LEAKED)


def test_a_comparison_that_was_killed_compares_only_what_is_left(
    files, tiny_model, tmp_path, g2is, monkeypatch
):
    g2is(*ingest(files, tiny_model, tmp_path, "--part-rows", "20"))
    held = Workspace(str(tmp_path))
    expected = held.storage.read_bytes("overlap/matches.jsonl")
    record = held.stages()["overlap"]
    held.storage.remove("overlap/receipt.json")
    held.storage.write_bytes("overlap/part-00002.jsonl", b"")  # damaged
    read_parts, turns = [], ExampleSet.turns

    def noted(self: ExampleSet, part: int):
        read_parts.append((self.folder, part))
        return turns(self, part)

    monkeypatch.setattr(ExampleSet, "turns", noted)
    write_overlap(held)
    assert [part for folder, part in read_parts if folder == "pool"] == [2]
    assert held.storage.read_bytes("overlap/matches.jsonl") == expected
    assert held.stages()["overlap"] == record


def test_a_test_set_that_comes_later_outdates_only_selections_of_its_rows(
    files, tiny_model, tmp_path, g2is, told
):
    there = ["--workspace", str(tmp_path)]
    select = ["select", "--selector", "tfidf", "--fraction", "0.5", "--target", "m=v", *there]
    pool = ["--pool", f"{files}/pool.jsonl", "--model", tiny_model, "--max-tokens", "512"]
    g2is("ingest", *pool, "--target", f"m={files}/val.jsonl", *there)
    g2is(*select)
    assert set(picks(tmp_path, "m")) & set(LEAKED)
    made = (tmp_path / "selections/m/receipt.json").stat().st_mtime_ns
    clean = write(tmp_path / "clean.jsonl", read("target-gsm8k-test", 30)[TEST_ROWS:])
    other = ["--target", f"o={files}/val.jsonl", "--test", f"o={clean}"]
    g2is("ingest", *other, *there)
    g2is(*select)
    assert (tmp_path / "selections/m/receipt.json").stat().st_mtime_ns == made
    g2is("ingest", "--test", f"m={files}/test.jsonl", *there)
    assert "selections/m: recomputing, because overlap grew" in told(*select)
    assert not set(picks(tmp_path, "m")) & set(LEAKED)


def test_a_target_in_its_own_test_or_in_anothers_is_named(files, tiny_model, tmp_path, g2is):
    both = ["--target", f"n={files}/val.jsonl", "--target", f"m={files}/val.jsonl"]
    tests = ["--test", f"m={files}/val.jsonl"]
    g2is(*ingest(files, tiny_model, tmp_path, *both, *tests))
    found = [(one.set, one.of, sum(one.rows_of.values())) for one in overlaps(Workspace(tmp_path))]
    assert found == [
        ("targets/m/val", "targets/m/test", VAL_ROWS),
        ("targets/n/val", "targets/m/test", VAL_ROWS),
        ("targets/m/val", "targets/n/val", VAL_ROWS),
    ]


def test_rows_are_compared_across_schemas_and_files(files, tiny_model, tmp_path, g2is):
    rows = [texts(row) for row in read("target-gsm8k-test", 3)]
    turns = [[{"from": "human", "value": q}, {"from": "gpt", "value": a}] for q, a in rows]
    pq.write_table(pa.table({"conversations": turns}), tmp_path / "sharegpt.parquet")
    alpaca = [
        {"instruction": q.partition(" ")[0], "input": q.partition(" ")[2], "output": a}
        for q, a in rows
    ]
    write(tmp_path / "alpaca.jsonl", alpaca)
    for name in ("sharegpt.parquet", "alpaca.jsonl"):
        ws = tmp_path / f"ws-{name}"
        g2is(*ingest(files, tiny_model, ws, "--pool", f"{tmp_path}/{name}"))
        (one,) = overlaps(Workspace(str(ws)))
        assert one.rows == one.rows_of == {"row": 3}


def test_a_pool_of_nothing_but_test_rows_is_refused(files, tiny_model, tmp_path, g2is, refused):
    g2is(*ingest(files, tiny_model, tmp_path, "--pool", f"{files}/test.jsonl"))
    there = ["--workspace", str(tmp_path), "--fraction", "1", "--selector", "random"]
    assert refused("select", *there) == (
        f"all {TEST_ROWS} rows of the pool are like test rows, so none may be selected: take other "
        "tests or another pool, or give --allow-overlap"
    )


def test_no_selector_picks_a_row_that_is_like_a_test_row(tmp_path, g2is):
    held = make_workspace(tmp_path)
    pool = list(ExampleSet(held, "pool").read_all(["messages"]))
    leaked = [3, 17, 40, 41, 42, 199, 239]
    held.stage("targets/law/test").begin({})
    write_rows(held, "targets/law/test", 0, [{"messages": pool[row]["messages"]} for row in leaked])
    held.stage("targets/law/test").conclude({"rows": 7, "parts": 1, "part_rows": PART_ROWS})
    write_overlap(held)
    others = [name for name in NAMES if name != "walk"]
    fraction = ["--fraction", "0.9", "--workspace", str(tmp_path)]
    for chosen in (["--selector", "walk"], ["--selector", "walk", "--joint"]):
        g2is("select", *chosen, "--baselines", *others, "paper", *fraction)
    assert len(held.storage.names("selections")) == (len(others) + 2) * 4
    for variant in held.storage.names("selections"):
        rows = picks(tmp_path, variant)
        assert len(rows) > 100 and not set(rows) & set(leaked), variant
    assert len(pool) == PARTS * PART_ROWS


def test_a_selection_waits_for_the_comparison(files, tiny_model, tmp_path, g2is, refused):
    g2is(*ingest(files, tiny_model, tmp_path))
    held = Workspace(str(tmp_path))
    held.stage("targets/n/val").begin({})
    rows = list(ExampleSet(held, "targets/m/val").read_all())
    write_rows(held, "targets/n/val", 0, rows)
    held.stage("targets/n/val").conclude({"rows": VAL_ROWS, "parts": 1, "part_rows": 4096})
    sentence = refused("select", "--fraction", "0.5", "--workspace", str(tmp_path), *BY_CHANCE)
    assert re.search("were not compared for overlaps yet; run `g2is ingest", sentence)
