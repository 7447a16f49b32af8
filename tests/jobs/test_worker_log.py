"""Output of workers goes to a file of the workspace for each stage, not to the terminal."""

import logging

import pytest
from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

from g2is_ray.errors import WorkspaceError
from g2is_ray.workspace.workspace import Workspace
from jobs.worker_log import WorkerLog


@pytest.fixture
def workspace(tmp_path):
    return Workspace(str(tmp_path / "ws"))


@pytest.fixture
def terminal(monkeypatch, caplog):
    """What Ray would print on the terminal."""
    caplog.set_level(logging.INFO, logger="jobs.worker_log")  # an earlier test may have debugged
    printed = []
    monkeypatch.setattr(dispatcher, "emit", printed.append)
    return printed


def say(line, pid="123", actor="RayTrainWorker"):
    """What Ray does when a worker prints a line."""
    batch = {"pid": pid, "ip": "10.0.0.7", "actor_name": actor, "lines": [line], "is_err": True}
    dispatcher.emit(batch)


def test_each_stage_has_a_file_of_what_its_workers_print(workspace, terminal):
    log = WorkerLog(workspace)
    with log.taking():
        log.begin("warmup")
        say("{'loss': 2.1}")
        log.begin("tuned/a@random")
        say("mtime may not be reliable")
        say("and \ud800")
    assert workspace.storage.read_bytes("logs/warmup.log") == (
        b"(RayTrainWorker pid=123, ip=10.0.0.7) {'loss': 2.1}\n"
    )
    assert workspace.storage.read_bytes("logs/tuned/a@random.log").count(b"\n") == 2
    assert terminal == []
    say("later")
    assert len(terminal) == 1


def test_lines_of_a_stage_are_added_to_those_of_an_earlier_command(workspace, terminal):
    for line in ("first", "second"):
        log = WorkerLog(workspace)
        with log.taking():
            log.begin("warmup")
            say(line)
    assert workspace.storage.read_bytes("logs/warmup.log").count(b"\n") == 2


@pytest.mark.parametrize("pid", ["autoscaler", "raylet"])
def test_lines_of_rays_own_processes_reach_the_terminal(pid, workspace, terminal):
    with WorkerLog(workspace).taking():
        say("no node", pid=pid)
    assert len(terminal) == 1
    assert not workspace.storage.names("")


def test_with_debugging_on_everything_reaches_the_terminal(workspace, terminal, caplog):
    with caplog.at_level(logging.DEBUG, "jobs.worker_log"), WorkerLog(workspace).taking():
        say("{'loss': 2.1}")
    assert len(terminal) == 1


def test_storage_that_refuses_the_file_is_named_once_and_ends_nothing(
    workspace, terminal, monkeypatch, caplog
):
    def refuse(path, data):
        raise WorkspaceError("the disk is full")

    monkeypatch.setattr(workspace.storage, "append_bytes", refuse)
    log = WorkerLog(workspace)
    with log.taking():
        for stage in ("a", "b"):
            log.begin(stage)
            say("line")
    assert [record.message for record in caplog.records] == [
        "logs/a.log cannot be written: the disk is full; going on without it"
    ]


@pytest.mark.parametrize("link", ["logs", "logs/warmup.log"])
def test_no_link_of_an_untrusted_workspace_is_followed(link, workspace, terminal, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "ws" / link).parent.mkdir(parents=True)
    to = "outside" if link == "logs" else "outside/x"
    (tmp_path / "ws" / link).symlink_to(tmp_path / to)
    log = WorkerLog(workspace)
    with log.taking():
        log.begin("warmup")
        say("line")
    assert not list((tmp_path / "outside").iterdir())
