"""`g2is submit` on a head node of its own: what is uploaded, followed, refused, returned."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "data"
SETTINGS = f"""
pool: [data]
target: {{gsm8k: val.jsonl}}
test: {{gsm8k: test.jsonl}}
model: {ROOT / "examples" / "tiny-lm"}
fraction: 0.2
baselines: []
max_tokens: 128
max_rejected: 0.1
part_rows: 12
neighbors: 6
projection_dim: 512
lora_r: 2
lora_alpha: 8
warmup_epochs: 1
warmup_fraction: 0.1
warmup_batch_size: 2
tune_epochs: 1
exact_match_rows: 0
"""
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens
SECRETS = {
    "HF_TOKEN": "hf_secretsecretsecret",
    "AWS_ACCESS_KEY_ID": "AKIASECRETSECRET",
    "AWS_SECRET_ACCESS_KEY": "awssecretsecretsecret",
    "WANDB_API_KEY": "wandbsecretsecretsecret",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "data").mkdir()
    for source, rows, to in (
        ("pool", 36, "data/pool"),
        ("target-gsm8k-val", 6, "val"),
        ("target-gsm8k-test", 4, "test"),
    ):
        lines = (DATA / f"{source}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{to}.jsonl").write_text("".join(lines[:rows]))
    (folder / "run.yaml").write_text(SETTINGS)
    (folder / "private.jsonl").write_text("{}\n")
    return folder


@pytest.fixture
def here(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the inputs, as current folder."""
    monkeypatch.chdir(inputs)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", NOWHERE)  # undone after the test
    return inputs


def arguments(address: str, workspace: object, *more: str) -> list[str]:
    given = ["--config", "run.yaml", "--address", address, "--workspace", str(workspace)]
    return ["submit", *given, *more]


# Refusals before anything is uploaded


@pytest.mark.parametrize("address", ["auto", "local", "127.0.0.1:6379", "ray://127.0.0.1:10001"])
def test_an_address_that_is_not_the_dashboards_is_refused(address, here, refused):
    sentence = refused(*arguments(address, "/ws"))
    assert sentence.startswith("address should be the URL of the cluster's dashboard")


def test_a_missing_address_is_asked_for(here, refused):
    sentence = refused("submit", "--config", "run.yaml", "--workspace", "/ws")
    assert sentence.startswith("address should be the URL")


@pytest.mark.parametrize("workspace", ["runs/first", "file://runs/first"])
def test_a_workspace_in_the_current_folder_is_refused(workspace, here, refused):
    sentence = refused(*arguments(NOWHERE, workspace))
    assert sentence.startswith(f"workspace {workspace} is a relative path")


@pytest.mark.parametrize("setting", ["model", "warmup-from"])
def test_a_folder_of_this_machine_is_refused(setting, here, refused):
    sentence = refused(*arguments(NOWHERE, "/ws", f"--{setting}", "data"))
    assert sentence.startswith(f"{setting.replace('-', '_')} data is a folder on this machine")


@pytest.mark.parametrize(
    ("setting", "value"), [("pool", "none"), ("selector", "none.py:A"), ("baselines", "none.py:A")]
)
def test_a_missing_file_is_refused(setting, value, here, refused):
    sentence = refused(*arguments(NOWHERE, "/ws", f"--{setting}", value))
    missing = value.removesuffix(":A")
    assert sentence == f"{missing}: no such file or directory; check the path"


def test_a_file_above_the_current_folder_is_refused(here, refused, monkeypatch):
    monkeypatch.chdir(here / "data")
    given = ["--pool", "../data/pool.jsonl", "--target", "gsm8k=../val.jsonl"]
    sentence = refused("submit", "--address", NOWHERE, "--workspace", "/ws", *given)
    assert sentence.startswith("../val.jsonl is not below the current folder")


def test_files_above_the_limit_are_refused(here, refused, monkeypatch):
    monkeypatch.setattr("jobs.submit._UPLOAD_BYTES", 1000)
    sentence = refused(*arguments(NOWHERE, "/ws"))
    assert sentence.startswith("3 files have 0 MiB, and a job takes 0 MiB at most")


def test_a_wrong_setting_is_refused_before_the_cluster_is_asked(here, refused):
    sentence = refused(*arguments(NOWHERE, "/ws", "--fraction", "7"))
    assert sentence.startswith("fraction should be less than or equal to 1")


def test_a_cluster_that_is_not_there_is_named(here, refused):
    sentence = refused(*arguments(NOWHERE, "/ws"))
    assert sentence.startswith(f"the cluster at {NOWHERE} cannot be used: ")


class AsksForToken(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(401)

    def log_message(self, *_):
        pass


def test_a_token_that_is_missing_is_asked_for(here, refused):
    with HTTPServer(("127.0.0.1", 0), AsksForToken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        sentence = refused(*arguments(address, "/ws"))
        server.shutdown()
    assert sentence == (
        f"the cluster at {address} does not accept the token of this machine: set "
        "RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token"
    )


# On a cluster


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="g2is-", dir="/tmp"))  # paths of sockets must be short
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(head_folder: Path) -> Iterator[str]:
    """URL of the dashboard of a head node whose environment holds secrets."""
    port, dashboard, agent, client = free_ports(4)
    start = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", "--num-cpus=2", "--disable-usage-stats"),
        *(f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={head_folder}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
        *("--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={2**27}"),
    ]
    with (head_folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            start, env=environment() | SECRETS, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield wait_for(f"http://127.0.0.1:{dashboard}", head, head_folder / "head.log")
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # and the workers end without their node
        head.wait()


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # a job runs `python`
    more = {"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return os.environ | more | {"PATH": path}


def wait_for(address: str, head: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + 300
    while head.poll() is None and time.monotonic() < deadline:
        try:
            JobSubmissionClient(address)
        except (OSError, RuntimeError):
            time.sleep(0.5)
        else:
            return address
    pytest.fail(f"the head node did not start: {log.read_text()[-3000:]}")


def g2is(*given: str) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", *given]


def finish(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def job(cluster: str, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A job that was submitted, submitted again, no longer followed, and then finished."""
    workspace = tmp_path_factory.mktemp("job") / "workspace"
    command = g2is(*arguments(cluster, workspace))
    with subprocess.Popen(
        command,
        cwd=inputs,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Ignored, as it is where tests run in the background, it would stay so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as first:
        line = first.stdout.readline()  # of the job's log
        second = finish(command, inputs)
        first.send_signal(signal.SIGINT)
        _, err = first.communicate()
    client = JobSubmissionClient(cluster)
    [info] = [one for one in client.list_jobs() if str(workspace) in str(one.metadata)]
    left = info.status
    while not client.get_job_status(info.submission_id).is_terminal():
        time.sleep(0.5)
    return {
        "workspace": workspace,
        "line": line,
        "status": first.returncode,
        "err": err,
        "left": left,
        "second": second,
        "id": info.submission_id,
        "info": client.get_job_info(info.submission_id),
        "log": client.get_job_logs(info.submission_id),
    }


@pytest.mark.ray
@pytest.mark.usefixtures("logging_as_before")
def test_the_exit_status_is_the_jobs(ray_head, here, tmp_path, monkeypatch) -> None:
    from jobs.cli import main

    monkeypatch.setattr("jobs.submit.ENTRYPOINT", "exit 3")
    assert main(arguments(f"http://{ray_head.webui_url}", tmp_path)) == 3


slow = [pytest.mark.ray, pytest.mark.slow]


class TestJob:
    pytestmark = slow

    def test_the_job_does_every_stage(self, job):
        assert job["info"].status == JobStatus.SUCCEEDED, job["log"][-3000:]
        picks = (job["workspace"] / "selections/gsm8k/selection.jsonl").read_text().splitlines()
        assert len(picks) == 7
        adapter = "tuned/gsm8k/adapter/adapter_model.safetensors"
        assert (job["workspace"] / adapter).exists()
        assert "gsm8k" in (job["workspace"] / "report.html").read_text()

    def test_its_log_is_followed(self, job):
        assert job["line"]
        assert job["line"] in job["log"]

    def test_its_workspace_is_refused_while_it_runs(self, job):
        assert job["second"].returncode == 2, job["second"].stderr
        last = job["second"].stderr.splitlines()[-1]
        assert last.startswith(
            f"g2is: error: job {job['id']} is already running on {job['workspace']}"
        )

    def test_ctrl_c_leaves_it_running_and_says_how_to_go_on(self, job):
        assert job["status"] == 130
        assert job["left"] == JobStatus.RUNNING
        assert "ray job logs --follow --address http://127.0.0.1:" in job["err"]
        assert "ray job stop --address http://127.0.0.1:" in job["err"]
        assert job["err"].count(job["id"]) == 3

    def test_nothing_else_is_uploaded(self, job, head_folder):
        packages = list(head_folder.glob("session_2*/runtime_resources/working_dir_files/*/"))
        held = [
            {str(file.relative_to(package)) for file in package.rglob("*") if file.is_file()}
            for package in packages
        ]
        assert {"run.yaml", "data/pool.jsonl", "val.jsonl", "test.jsonl"} in held

    def test_secrets_of_the_environment_are_written_nowhere(self, job):
        files = [file for file in job["workspace"].rglob("*") if file.is_file()]
        assert len(files) > 30
        written = {str(file): file.read_bytes() for file in files}
        written["log"] = job["log"].encode()
        written["what Ray holds of the job"] = str(job["info"]).encode()
        for name, content in written.items():
            assert not [key for key, secret in SECRETS.items() if secret.encode() in content], name

    def test_submitted_again_it_has_nothing_to_do(self, job, cluster, inputs):
        before = (job["workspace"] / "report.html").stat().st_mtime_ns
        done = finish(g2is(*arguments(cluster, f"{job['workspace']}/")), inputs)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "report: already done" in done.stdout
        assert (job["workspace"] / "report.html").stat().st_mtime_ns == before


@pytest.mark.usefixtures("logging_as_before")
class TestExitStatus:
    pytestmark = slow

    def test_a_refusal_is_2(self, cluster, inputs, tmp_path):
        more = ("--neighbors", "36", "--workspace", str(tmp_path / "ws"))
        done = finish(g2is(*arguments(cluster, "/"), *more), inputs)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "g2is: error: neighbors must be below the number of rows" in done.stdout

    @pytest.mark.parametrize(
        ("entrypoint", "status", "sentence"),
        [
            ('test -z "$HF_TOKEN"', 1, ""),  # 1, as jobs have the cluster's environment
            ("kill -9 $$", 2, "failed with exit code -9"),
        ],
    )
    def test_another_is_the_jobs(
        self, entrypoint, status, sentence, cluster, here, tmp_path, monkeypatch, capsys
    ):
        from jobs.cli import main

        monkeypatch.setattr("jobs.submit.ENTRYPOINT", entrypoint)
        assert main(arguments(cluster, tmp_path)) == status
        assert sentence in capsys.readouterr().err

    def test_a_job_that_is_not_waited_for_gives_0(self, cluster, here, tmp_path, monkeypatch, g2is):
        monkeypatch.setattr("jobs.submit.ENTRYPOINT", "exit 1")
        assert g2is(*arguments(cluster, tmp_path, "--no-wait")) == ""


@pytest.mark.ray
@pytest.mark.slow
def test_rays_own_command_runs_the_job_from_a_checkout(cluster: str, tmp_path: Path) -> None:
    job = ["python", "-m", "jobs.main_job", "--config", "examples/demo.yaml"]
    few = ["--pool", "examples/data/target-gsm8k-val.jsonl", "--neighbors", "2000"]
    ray = str(Path(sys.executable).with_name("ray"))
    done = finish(
        [
            *(ray, "job", "submit", "--address", cluster, "--working-dir", ".", "--"),
            *(*job, *few, "--workspace", str(tmp_path / "ws")),
        ],
        ROOT,
    )
    assert "neighbors must be below the number of rows" in done.stdout
    assert json.loads((tmp_path / "ws/pool/receipt.json").read_text())["rows"] > 0
