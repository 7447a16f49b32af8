"""What happens to a workspace is in its events.jsonl."""

import json
import logging

import pytest

from g2is_ray.errors import InputError
from g2is_ray.workspace.workspace import Workspace
from jobs import events
from jobs.events import EventLog


def lines(workspace):
    return [json.loads(line) for line in workspace.storage.read_bytes("events.jsonl").splitlines()]


@pytest.fixture(params=["local", "remote"])
def workspace(request, tmp_path):
    return Workspace(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def test_commands_add_to_what_earlier_ones_wrote(workspace):
    for command in ("ingest", "warmup"):
        with EventLog(workspace).around(command):
            pass
    found = [(line["event"], line["command"]) for line in lines(workspace)]
    assert found == [
        (event, command)
        for command in ("ingest", "warmup")
        for event in ("command_begun", "command_done")
    ]
    assert all(line["time"].endswith("+00:00") for line in lines(workspace))


@pytest.mark.parametrize("error", [InputError("x.jsonl: cannot be read"), KeyboardInterrupt()])
def test_a_command_that_fails_says_why(error, workspace):
    with pytest.raises(type(error)), EventLog(workspace).around("run"):
        raise error
    last = lines(workspace)[-1]
    assert last["event"] == "command_failed"
    assert last["reason"] == (str(error) or "KeyboardInterrupt")


def test_events_are_written_while_a_command_runs(workspace, monkeypatch):
    log = EventLog(workspace)
    log.tell("part_done", {"item": "held back"})
    assert not workspace.storage.exists("events.jsonl")
    monkeypatch.setattr(events, "_HELD_SECONDS", 0)
    log.tell("part_done", {"item": "the next"})
    assert [line["item"] for line in lines(workspace)] == ["held back", "the next"]


def test_a_receipt_is_shortened_and_other_objects_are_written_as_text(workspace):
    log = EventLog(workspace)
    with log.around("gradients"):
        receipt = {"rows": 3, "tokens": 90, "files": {"part-00000.npy": {"bytes": 1}}}
        log.tell("part_done", {"item": InputError("a part"), "receipt": receipt})
    found = lines(workspace)[1]
    assert (found["item"], found["receipt"]) == ("a part", {"rows": 3, "tokens": 90})


def test_storage_that_refuses_does_not_end_a_command(tmp_path, caplog):
    (tmp_path / "events.jsonl").mkdir()
    with caplog.at_level(logging.WARNING), EventLog(Workspace(str(tmp_path))).around("run"):
        pass
    assert "events are not written" in caplog.text
