"""One command at a time writes a local workspace."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from g2is_ray.errors import WorkspaceError
from jobs.session import Session

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from jobs.session import Session

with Session(sys.argv[1], {"address": "local"}).writing("test") as session:
    session.ray()
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def ws(empty_folder) -> str:
    return "ws"


def test_a_second_command_that_writes_is_refused(ws, refused):
    with Session(ws, {}).writing("test"):
        sentence = refused("ingest", "--workspace", ws, "--pool", "x", "--model", "y")
    assert sentence == "another command is writing ws: wait until it ends, or stop it"


def test_the_next_command_may_write(ws, refused):
    for _ in range(2):
        with Session(ws, {}).writing("test"):
            pass
    assert "no such file" in refused("ingest", "--workspace", ws, "--pool", "x", "--model", "y")


def test_what_only_reads_is_not_kept_waiting(ws):
    with Session(ws, {}).writing("test"), Session(ws, {}).reading() as session:
        assert session.workspace.stages() == {}


@pytest.mark.parametrize("command", ["status", "report"])
def test_commands_that_do_not_write_stages_only_read(command):
    from jobs.commands import COMMANDS

    assert COMMANDS[command].access == "reads"


def test_two_names_of_one_workspace_are_one(ws, tmp_path):
    with (
        Session(ws, {}).writing("test"),
        pytest.raises(WorkspaceError),
        Session(f"file://{tmp_path}/ws/", {}).writing("test"),
    ):
        pass


def test_a_workspace_that_is_not_a_folder_of_this_machine_has_no_lock():
    first, second = (Session("memory://ws", {}).writing("test") for _ in range(2))
    with first, second as session:
        assert not session.workspace.storage.names("")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    session = Session(str(tmp_path / "file" / "ws"), {})
    with (
        pytest.raises(WorkspaceError, match="cannot be written: Not a directory"),
        session.writing("test"),
    ):
        pass


def test_a_file_system_without_locks_only_warns(ws, monkeypatch, caplog):
    def flock(*_):
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(fcntl, "flock", flock)
    with Session(ws, {}).writing("test"):
        assert "give one command at a time" in caplog.text


@pytest.mark.ray
@pytest.mark.slow
def test_the_lock_ends_with_a_driver_that_is_killed(tmp_path):
    """Also where processes that Ray has started for it are still there."""
    workspace = str(tmp_path / "ws")
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, workspace],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as driver:
        assert driver.stdout.readline() == b"writing\n"
        started = psutil.Process(driver.pid).children(recursive=True)
        with pytest.raises(WorkspaceError), Session(workspace, {}).writing("test"):
            pass
        for process in started:  # so that they outlive the driver, whatever Ray makes of its end
            process.suspend()
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        alive = [process for process in started if process.is_running()]
        with Session(workspace, {}).writing("test"):
            pass
        for process in started:
            process.kill()
    assert len(alive) > 2
