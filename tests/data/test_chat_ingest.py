"""Chat templates and workspaces: a template that changes, a date in one, what the log says."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from chat_kinds import CHATML, THINKING, conversation

from g2is_ray.errors import WorkspaceError
from g2is_ray.workspace.workspace import Workspace
from jobs import ingest as job
from jobs.ingest import ingest, pool_settings
from jobs.session import Session

DATED = "{{ strftime_now('%d %b %Y') + '\n' }}" + CHATML
ROWS = [conversation("a", f"yes {i}", "b", "no") for i in range(3)]


@pytest.fixture
def model(empty_folder, tiny_model):
    """A copy of the bundled model, whose template a test may change."""
    return Path(shutil.copytree(tiny_model, "model"))


def set_template(model, template):
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")


def write(name, rows):
    lines = [json.dumps({"messages": messages}) for messages in rows]
    Path(name).write_text("\n".join(lines), encoding="utf-8")
    return name


def read(model, **given):
    """Read the pool into the workspace `ws`; returns the receipt."""
    if not given:
        given = {"pool": [write("pool.jsonl", ROWS)]}
    ingest(Session("ws", {"model": str(model), "max_rejected": 1.0, **given}))
    return Workspace("ws").storage.read_json("pool/receipt.json")


@pytest.mark.parametrize("given", [{}, {"target": {"t": "t.jsonl"}}], ids=["pool", "target"])
def test_a_template_that_has_changed_is_refused(model, given):
    set_template(model, CHATML)
    read(model)
    read(model)
    write("t.jsonl", ROWS)
    set_template(model, CHATML + "{# changed #}")
    with pytest.raises(WorkspaceError, match=r"pool was made with template "):
        read(model, **given)


def test_a_tokenizer_that_has_changed_is_refused(model):
    read(model)
    file = model / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"][-1]["rstrip"] = not tokenizer["added_tokens"][-1]["rstrip"]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(WorkspaceError, match=r"pool was made with template "):
        read(model)


def test_a_date_in_a_template_stays_that_of_the_day_the_pool_was_read(model, monkeypatch):
    set_template(model, DATED)
    days = []
    for day in ("2025-03-09", "2025-03-10"):
        monkeypatch.setattr(job, "today", lambda day=day: day)
        read(model)
        days.append(pool_settings(Session("ws", {}))[0].template_date)
    assert days == ["2025-03-09"] * 2


def test_another_date_than_the_pools_is_refused(model):
    set_template(model, DATED)
    file = write("pool.jsonl", ROWS)
    read(model, pool=[file], template_date="2025-03-09")
    with pytest.raises(WorkspaceError, match='pool was made with template_date "2025-03-09"'):
        read(model, pool=[file], template_date="2025-03-10")


def test_a_template_without_a_date_is_told_none(model, monkeypatch):
    monkeypatch.setattr(job, "today", lambda: pytest.fail("asked for the day"))
    set_template(model, CHATML)
    read(model)
    assert pool_settings(Session("ws", {}))[0].template_date == ""


def test_rows_that_the_template_alters_are_counted_and_said_once(model, caplog):
    set_template(model, THINKING)
    dropped = conversation("a", "<think>hm</think>yes", "b", "no")
    with caplog.at_level(logging.WARNING):
        receipt = read(model, pool=[write("pool.jsonl", [*ROWS, dropped, dropped])])
    assert receipt["altered"] == 2
    said = [one for one in caplog.messages if "leaves out or changes" in one]
    assert len(said) == 1
    assert "in 2 rows" in said[0]


def test_it_is_said_once_that_the_plain_template_stands_in(model, caplog):
    (model / "chat_template.jinja").unlink()
    job._warn_of_plain.cache_clear()
    file = write("pool.jsonl", ROWS)
    with caplog.at_level(logging.WARNING):
        read(model, pool=[file], target={"t": file})
        read(model, pool=[file], target={"t": file})
    assert sum("has no chat template" in one for one in caplog.messages) == 1
