"""`g2is compare` on the main job's workspace: what all have alike, what is written, and resume."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from in_process import work_in_process
from main_job import run

from g2is_ray.comparison.trials import Trial, read_scores
from g2is_ray.workspace.layout import comparisons_in
from g2is_ray.workspace.workspace import Workspace

METHODS = ["random", "tfidf", "loose=walk,delta=0.2"]
TRIALS = {"base", *(f"{name}-{seed}" for name in ("random", "tfidf", "loose") for seed in (4, 5))}


def arguments(workspace: str, *more: str) -> list[str]:
    return [
        *("compare", "--workspace", workspace),
        *("--methods", *METHODS, "--seeds", "4", "5", "--fraction", "0.4"),
        *("--tune-epochs", "2", "--tune-learning-rate", "0.01", "--tune-batch-size", "6", *more),
    ]


@pytest.fixture(scope="module")
def compared(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = tmp_path_factory.mktemp("compared") / "ws"
    shutil.copytree(finished, workspace)
    with pytest.MonkeyPatch.context() as patch:
        work_in_process(patch)
        run(arguments(str(workspace)))
    return Workspace(str(workspace))


@pytest.fixture(scope="module")
def numbers(compared: Workspace) -> dict:
    (budget,) = compared.storage.names("comparisons")
    return compared.storage.read_json(f"comparisons/{budget}/comparison.json")


@pytest.fixture(scope="module")
def trials(numbers: dict) -> str:
    return f"comparisons/{numbers['budget_tokens']}/gsm8k/trials"


def receipts(compared: Workspace, trials: str) -> dict[str, dict]:
    return {name: compared.stage(trials).require_piece(name) for name in TRIALS}


def test_every_method_has_a_trial_for_every_seed(compared, trials):
    held = {name for name in compared.storage.names(trials) if name.endswith(".json")}
    assert held == {f"{name}.json" for name in (*TRIALS, "receipt")}
    assert all(receipts(compared, trials).values())


def test_status_counts_the_trials(compared, trials, g2is):
    line = next(
        line
        for line in g2is("status", compared.storage.location("")).splitlines()
        if trials in line
    )
    assert line.split()[1:3] == ["7/7", "done,"]


def test_all_train_for_the_same_steps_on_about_the_same_tokens(compared, trials, numbers):
    tuned = [one for name, one in receipts(compared, trials).items() if name != "base"]
    assert len({one["steps"] for one in tuned}) == 1
    longest = 128  # tokens of a row: picking ends before the first row that does not fit
    most = 2 * numbers["budget_tokens"]
    assert all(most - 2 * longest < one["train_tokens"] <= most for one in tuned)


def test_seeds_decide_the_training_and_what_random_draws_and_nothing_else(compared, trials):
    assert sorted(compared.storage.names(f"{trials.removesuffix('/trials')}/selections")) == [
        "loose",
        "random-4",
        "random-5",
        "tfidf",
    ]
    found = receipts(compared, trials)
    assert found["tfidf-4"]["seed"] == 4
    assert found["tfidf-4"]["loss"] != found["tfidf-5"]["loss"]
    assert found["tfidf-4"]["fingerprint"] == found["tfidf-5"]["fingerprint"]


def test_the_table_holds_what_the_trials_found(compared, trials, numbers):
    found, (table,) = receipts(compared, trials), numbers["targets"]
    assert table["base_loss"] == found["base"]["loss"] != found["tfidf-4"]["loss"]
    means = [np.mean(row["losses"]) for row in table["methods"]]
    assert means == sorted(means)
    for row in table["methods"]:
        assert row["losses"] == [found[f"{row['name']}-{seed}"]["loss"] for seed in (4, 5)]
        assert row["cost"]["seconds"] > 0
        assert row["cost"]["gpu_seconds"] == 0
        assert table["overlaps"][row["name"]][row["name"]] == 1
    rows = {row["name"]: row for row in table["methods"]}
    assert rows["random"]["to_reference"] is None
    difference = np.mean(rows["tfidf"]["losses"]) - np.mean(rows["random"]["losses"])
    assert rows["tfidf"]["to_reference"]["mean"] == pytest.approx(difference)
    stored = {name: row["cost"]["stored_bytes"] for name, row in rows.items()}
    assert stored["loose"] > stored["tfidf"]  # which needs no gradients


def test_the_page_shows_every_method(compared, numbers):
    place = f"comparisons/{numbers['budget_tokens']}/comparison.html"
    page = compared.storage.read_bytes(place).decode()
    for row in numbers["targets"][0]["methods"]:
        assert row["name"] in page and f"{np.mean(row['losses']):.4f}" in page
    assert comparisons_in(compared) == [numbers["budget_tokens"]]


def test_scores_of_all_test_rows_are_kept(compared, trials):
    scores = read_scores(compared, Trial(stage=trials, target="gsm8k"))
    assert len(scores.losses) == 6
    assert np.isnan(scores.right).sum() == 4  # two are asked
    assert scores.facts()["loss"] == compared.stage(trials).require_piece("base")["loss"]


@pytest.mark.usefixtures("in_process")
def test_a_second_command_does_what_is_missing_only(compared, trials):
    (Path(compared.storage.location(trials)) / "random-5.json").unlink()
    before = {
        name: (Path(compared.storage.location(trials)) / f"{name}.json").stat().st_mtime_ns
        for name in TRIALS - {"random-5"}
    }
    run(arguments(compared.storage.location("")))
    after = {
        name: (Path(compared.storage.location(trials)) / f"{name}.json").stat().st_mtime_ns
        for name in TRIALS - {"random-5"}
    }
    assert before == after
    assert compared.stage(trials).verified("random-5")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--reference", "less"], "reference less is not one of the methods: random, tfidf, loose"),
        (["--budget-tokens", "2"], "budget_tokens 2 is less than the "),
        (["--methods", "random", "lss"], "methods should be paper, facility-location, walk, "),
        (["--seeds", "-1"], "seeds should be greater than or equal to 0"),
        (["--seeds", "1", "1"], "seeds should each be given once, got "),
        (["--tune-epochs", "3"], "comparisons/"),
        (["--target", "bbh=val.jsonl"], "target bbh has no test rows to compare with"),
    ],
)
def test_what_cannot_be_compared_is_refused(more, sentence, compared, refused):
    assert refused(*arguments(compared.storage.location(""), *more)).startswith(sentence)
