"""The main job on Ray, killed and started again, with pool, targets and workspace on S3."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from main_job import DATA, G2IS, ROOT, SETTINGS, environment, run
from object_store import BUCKET, serving
from ray_nodes import kill_with_children

from g2is_ray.models.checkpoints import file_names
from g2is_ray.workspace.workspace import Workspace
from jobs.session import Session

pytestmark = pytest.mark.ray

URL = f"s3://{BUCKET}/runs/first"


@pytest.fixture(scope="module")
def store():
    with serving() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture(scope="module")
def settings(store, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration file; the input files are in the bucket."""
    for file in inputs.glob("*.jsonl"):
        store.client().upload_file(str(file), BUCKET, f"data/{file.name}")
    more = (DATA / "pool.jsonl").read_bytes().splitlines(keepends=True)[36:46]
    store.client().put_object(Bucket=BUCKET, Key="data/more.jsonl", Body=b"".join(more))
    file = tmp_path_factory.mktemp("settings") / "run.yaml"
    file.write_text(SETTINGS.replace("[random, paper]", "[]"))
    return file


def command(settings: Path, *more: str) -> list[str]:
    where = f"s3://{BUCKET}/data"
    return [
        *("run", "--config", str(settings)),
        *("--workspace", URL, "--pool", f"{where}/pool.jsonl"),
        *("--target", f"gsm8k={where}/val.jsonl", "--test", f"gsm8k={where}/test.jsonl", *more),
    ]


@pytest.fixture(scope="module")
def on_disk(finished: Path) -> Workspace:
    return Workspace(str(finished))


@pytest.fixture(scope="module")
def on_s3(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Killed in the warm-up, when training has left a checkpoint to go on from; then finished.

    Both runs start a Ray. All processes of the killed run are killed, because one that lives on for
    a moment may still write a checkpoint.
    """
    workspace = Workspace(URL)
    arguments = command(settings)
    log = (tmp_path_factory.mktemp("logs") / "log").open("w+")
    driver = subprocess.Popen(
        [*G2IS, *arguments], cwd=ROOT, env=environment(), stdout=log, stderr=log
    )
    while driver.poll() is None:
        if any(
            name.startswith("checkpoint_") for name in workspace.storage.names("checkpoints/warmup")
        ):
            break
        time.sleep(0.05)
    assert driver.poll() is None, Path(log.name).read_text()[-4000:]
    kill_with_children(driver.pid)
    driver.wait()
    run(arguments)
    return workspace


@pytest.mark.parametrize(
    "file",
    [
        *(f"warmup/{name}" for number in (1, 2) for name in file_names(number)),
        *(f"gradients/part-{part:05d}.npy" for part in range(3)),
        *(f"graph/centered/part-{part:05d}.neighbors.npy" for part in range(3)),
        "selections/gsm8k/selection.jsonl",
        "selections/gsm8k/selected.jsonl",
        "tuned/gsm8k/adapter/adapter_model.safetensors",
    ],
)
def test_what_is_made_there_is_what_is_made_on_disk(
    file: str, on_s3: Workspace, on_disk: Workspace
) -> None:
    assert on_s3.storage.read_bytes(file) == on_disk.storage.read_bytes(file)


def test_scores_are_those_of_a_run_on_disk(on_s3: Workspace, on_disk: Workspace) -> None:
    for name in ("base", "selection"):
        there, here = (
            w.storage.read_json(f"evaluations/gsm8k/{name}.json") for w in (on_s3, on_disk)
        )
        assert there["loss"] == here["loss"]


def test_training_leaves_no_checkpoints(on_s3: Workspace) -> None:
    assert on_s3.storage.names("checkpoints") == []


def test_the_same_command_again_does_nothing(
    settings: Path, on_s3: Workspace, store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.requests.clear()
    monkeypatch.setattr(Session, "ray", lambda self: pytest.fail("it connects to Ray"))
    run(command(settings))
    written = [request for request in store.requests if '"PUT' in request]
    assert all("events.jsonl" in request for request in written)


def test_status_reads_it_from_anywhere(on_s3: Workspace, g2is: Callable[..., str]) -> None:
    log = g2is("status", URL)
    assert "gradients                       3/3  done, 35 rows" in log
    assert "to do" not in log


@pytest.mark.usefixtures("in_process")
def test_a_pool_grows_there_too(settings: Path, on_s3: Workspace) -> None:
    before = on_s3.storage.read_bytes("gradients/part-00002.npy")
    run(command(settings, "--append", f"s3://{BUCKET}/data/more.jsonl"))
    pool = on_s3.stage("pool").require()["rows"]
    assert pool > 36
    assert on_s3.stage("selections/gsm8k").require_current()["selected"] == int(pool * 0.2)
    assert on_s3.storage.read_bytes("gradients/part-00002.npy") == before
    assert b"gsm8k" in on_s3.storage.read_bytes("report.html")
