"""The main job: whole, repeated, extended, and killed in every stage."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from main_job import DATA, G2IS, ROOT, command, environment, head, run
from peft import PeftModel
from transformers import AutoModelForCausalLM

from g2is_ray.data.examples import ExampleSet
from g2is_ray.features.rows import map_neighbors
from g2is_ray.features.store import FeatureSet
from g2is_ray.graph.search import knn_graph
from g2is_ray.models.checkpoints import file_names
from g2is_ray.workspace.layout import graph_stage
from g2is_ray.workspace.workspace import Workspace
from jobs.session import Session


def written(workspace: Path, *folders: str) -> dict[str, int]:
    """Modification times of all files in the folders but the log of events."""
    files = [f for folder in folders for f in (workspace / folder).rglob("*") if f.is_file()]
    return {str(f): f.stat().st_mtime_ns for f in files if f.name != "events.jsonl"}


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_selected_rows_are_the_inputs_own(inputs: Path, finished: Path) -> None:
    pool = {row["id"]: row for row in lines(inputs / "pool.jsonl")}
    picks = lines(finished / "selections/gsm8k/selection.jsonl")
    selected = (finished / "selections/gsm8k/selected.jsonl").read_text().splitlines()
    assert len(picks) == len(selected) == 7
    for pick, line in zip(picks, selected, strict=True):
        assert json.loads(line) == pool[pick["id"]]
    summary = json.loads((finished / "selections/gsm8k/summary.json").read_text())
    assert (summary["budget"], summary["selected"]) == (7, 7)


def test_baselines_are_as_large_and_trained_as_long(finished: Path) -> None:
    random = json.loads((finished / "tuned/gsm8k@random/receipt.json").read_text())
    tuned = json.loads((finished / "tuned/gsm8k/receipt.json").read_text())
    for fact in ("rows", "steps", "seed"):
        assert random[fact] == tuned[fact]
    assert len(lines(finished / "selections/gsm8k@paper/selection.jsonl")) <= 7


def test_adapter_loads_with_peft_and_changes_the_model(finished: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(ROOT / "examples" / "tiny-lm")
    model = PeftModel.from_pretrained(base, str(finished / "tuned/gsm8k/adapter"))
    b = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert b
    assert any(float(p.abs().max()) > 0 for p in b)


def test_three_losses_are_measured_on_the_same_tokens(finished: Path) -> None:
    scores = [
        json.loads((finished / f"evaluations/gsm8k/{name}.json").read_text())
        for name in ("base", "selection", "random")
    ]
    assert len({score["test_tokens"] for score in scores}) == 1
    assert len({score["loss"] for score in scores}) == 3
    assert all(score["exact_match_rows"] == 2 for score in scores)


def test_training_writes_its_metrics(finished: Path) -> None:
    steps = [entry["step"] for entry in lines(finished / "warmup/metrics.jsonl")]
    assert steps == sorted(steps)
    assert steps[-1] == json.loads((finished / "warmup/receipt.json").read_text())["steps"]


def test_checkpoints_are_cleaned_up(finished: Path) -> None:
    assert not [file for file in (finished / "checkpoints").rglob("*") if file.is_file()]


def test_report_shows_the_selection_and_what_it_is_compared_with(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for text in ("gsm8k", "selection", "random", "paper", "selector facility-location"):
        assert text in page
    assert (finished / "selections/gsm8k/report.html").exists()


def test_the_same_command_again_does_nothing(
    inputs: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = shutil.copytree(finished, tmp_path / "workspace")
    before = written(workspace, "")
    monkeypatch.setattr(Session, "ray", lambda self: pytest.fail("it connects to Ray"))
    run(command(inputs, workspace))
    assert written(workspace, "") == before


@pytest.mark.usefixtures("in_process")
def test_a_second_target_reuses_gradients_and_graph(
    inputs: Path, finished: Path, tmp_path: Path
) -> None:
    finished = shutil.copytree(finished, tmp_path / "workspace")
    before = written(finished, "pool", "warmup", "gradients", "graph", "selections/gsm8k")
    other = (DATA / "target-gsm8k-test.jsonl").read_text().splitlines(keepends=True)[8:16]
    (tmp_path / "other.jsonl").write_text("".join(other))
    run(command(inputs, finished, "--target", f"other={tmp_path}/other.jsonl"))
    after = written(finished, "pool", "warmup", "gradients", "graph", "selections/gsm8k")
    changed = {Path(f).name for f, t in after.items() if before.get(f) != t}
    assert changed <= {"report.html"}
    assert (finished / "tuned/other/adapter/adapter_model.safetensors").exists()
    assert "other" in (finished / "report.html").read_text()


@pytest.mark.usefixtures("in_process")
def test_a_joint_selection_is_tuned_once_and_measured_on_each_target(
    inputs: Path, finished: Path, tmp_path: Path
) -> None:
    finished = shutil.copytree(finished, tmp_path / "workspace")
    head(DATA / "target-gsm8k-test.jsonl", 6, tmp_path / "third.jsonl")
    targets = ("--target", f"gsm8k={inputs}/val.jsonl", "--target", f"third={tmp_path}/third.jsonl")
    test = ("--test", f"third={inputs}/test.jsonl")
    run(command(inputs, finished, *targets, *test, "--joint", "--baselines", "random"))
    picks = lines(finished / "selections/joint/selection.jsonl")
    assert len(picks) == 7
    for target in ("gsm8k", "third"):
        joint = json.loads((finished / f"evaluations/{target}/joint.json").read_text())
        base = json.loads((finished / f"evaluations/{target}/base.json").read_text())
        assert joint["loss"] != base["loss"]
    assert not (finished / "evaluations/third/selection.json").exists()
    assert "for gsm8k, third together" in (finished / "report.html").read_text()
    assert "third" in (finished / "selections/joint/report.html").read_text()
    assert not (finished / "selections/third").exists()


@pytest.mark.usefixtures("in_process")
def test_a_pool_that_grows_keeps_what_it_has_and_selects_from_all(
    inputs: Path, finished: Path, tmp_path: Path
) -> None:
    workspace = shutil.copytree(finished, tmp_path / "workspace")
    rows = (DATA / "pool.jsonl").read_text().splitlines(keepends=True)[36:56]
    (tmp_path / "more.jsonl").write_text("".join(rows))
    before = written(workspace, "")
    arguments = command(inputs, workspace, "--append", str(tmp_path / "more.jsonl"))
    run(arguments)
    after = written(workspace, "")
    changed = {str(Path(f).relative_to(workspace)) for f, t in after.items() if before.get(f) != t}
    kept = {*file_names(1), *file_names(2), "base.json", "pair-00000-00000.json"}
    kept |= {f"part-{part:05d}.parquet" for part in range(3)}
    assert not kept & {Path(file).name for file in changed}
    old = {f"gradients/part-{part:05d}.json" for part in range(3)}
    assert not old & changed
    assert {"tuned/gsm8k/receipt.json", "selections/gsm8k@random/receipt.json"} <= changed
    pool = ExampleSet(Workspace(str(workspace)), "pool")
    picks = [pick["row"] for pick in lines(workspace / "selections/gsm8k/selection.jsonl")]
    assert len(picks) == int(pool.rows * 0.2) > 7
    assert max(picks) > 36
    for center in (True, False):
        held = Workspace(str(workspace))
        gradients = FeatureSet(held, "gradients", center=center, of_graph=True)
        near = map_neighbors(held, graph_stage(center)).arrays
        assert np.array_equal(np.concatenate(near), knn_graph(gradients.read_all(), 6))
    run(arguments)
    assert written(workspace, "") == after


def begun(stage: str) -> Callable[[Path], bool]:
    return lambda workspace: (
        f'"{stage}"' in (workspace / "workspace.json").read_text()
        if (workspace / "workspace.json").exists()
        else False
    )


def there(path: str) -> Callable[[Path], bool]:
    return lambda workspace: (workspace / path).exists()


KILLS = {
    "ingest": there("pool/part-00000.json"),
    "warmup": there("warmup/checkpoint-1/moments.safetensors"),
    "gradients": there("gradients/part-00000.json"),
    "graph": there("graph/centered/part-00000.json"),
    "select": begun("selections/gsm8k"),
    "tune": there("tuned/gsm8k/metrics.jsonl"),
    "evaluate": there("evaluations/gsm8k/base.json"),
    "report": there("selections/gsm8k/report.html"),
}


@pytest.mark.ray
@pytest.mark.slow
def test_stage_commands_killed_and_given_again_do_what_the_main_job_does(
    inputs: Path, finished: Path, ray_address: str, tmp_path: Path, g2is: Callable[..., str]
) -> None:
    workspace = tmp_path / "workspace"
    here = ["--workspace", str(workspace)]
    for stage, reached in KILLS.items():
        settings = ["--config", str(inputs / "run.yaml"), *here]
        if stage == "ingest":
            settings = command(inputs, workspace)[1:]
        elif stage in ("warmup", "gradients", "graph", "tune", "evaluate"):
            settings += ["--address", ray_address]
        log = (tmp_path / f"{stage}.log").open("w")
        driver = subprocess.Popen(
            [*G2IS, stage, *settings], cwd=ROOT, env=environment(), stdout=log, stderr=log
        )
        while driver.poll() is None and not reached(workspace):
            time.sleep(0.01)
        assert driver.poll() is None, f"{stage}: " + (tmp_path / f"{stage}.log").read_text()[-3000:]
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        run([stage, *settings])
    status = g2is("status", *here)
    assert "gradients                       3/3  done, 35 rows" in status
    assert "to do" not in status
    for variant in ("gsm8k", "gsm8k@random", "gsm8k@paper"):
        selection = f"selections/{variant}/selection.jsonl"
        assert (workspace / selection).read_bytes() == (finished / selection).read_bytes()
    warmed = [f"warmup/{name}" for number in (1, 2) for name in file_names(number)]
    for file in ("gradients/part-00002.npy", *warmed):
        assert (workspace / file).read_bytes() == (finished / file).read_bytes()
    assert (workspace / "report.html").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_warm_up_that_was_removed_by_hand_begins_again(
    inputs: Path, ray_address: str, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    run(["ingest", *command(inputs, workspace)[1:]])
    warm_up = ["warmup", "--config", str(inputs / "run.yaml"), "--workspace", str(workspace)]
    warm_up += ["--address", ray_address]
    warm_up += ["--warmup-epochs", "12"]  # long enough to be interrupted after checkpoint 1
    driver = subprocess.Popen(
        [*G2IS, *warm_up], cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
    )
    while driver.poll() is None and not there("warmup/checkpoint-1/moments.safetensors")(workspace):
        time.sleep(0.01)
    # Ends its workers too, unlike SIGKILL; a shell's background process ignores SIGINT.
    driver.send_signal(signal.SIGTERM)
    driver.wait()
    assert [file for file in (workspace / "checkpoints").rglob("*") if file.is_file()]
    shutil.rmtree(workspace / "warmup")
    run([*warm_up, "--warmup-learning-rate", "0.005"])
    rates = [e.get("learning_rate", 0) for e in lines(workspace / "warmup/metrics.jsonl")]
    assert max(rates) == 0.005  # the schedule's highest
