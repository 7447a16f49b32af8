"""How often a command reads `workspace.json`, which is a request each time on object storage."""

import shutil
from pathlib import Path

import pytest
import s3fs
from main_job import command as main_job
from selection_workspace import make_workspace

MOST = 3
SELECT = ["select", "--baselines", "random", "paper"]


@pytest.fixture
def count(g2is, reads):
    """Runs a command; returns how often it read the index."""

    def run(*arguments: object) -> int:
        reads.clear()
        g2is(*arguments)
        return reads.count("workspace.json")

    return run


def test_select_and_status_read_it_a_few_times(count, tmp_path):
    there = ["--workspace", make_workspace(tmp_path / "ws").storage.location("")]
    assert 1 <= count(*SELECT, *there) <= MOST
    assert 1 <= count(*SELECT, *there) <= MOST
    assert 1 <= count("status", *there) <= MOST
    assert 1 <= count("select", "--redo", "selections", *there) <= MOST


def test_so_they_do_on_object_storage(g2is, s3, tmp_path):
    made = make_workspace(tmp_path / "ws")
    s3fs.S3FileSystem().put(f"{made.storage.location('')}/", f"{s3.url}/", recursive=True)
    select = ["select", "--selector", "tfidf"]
    for arguments in (select, select, ["status"]):
        s3.requests.clear()
        g2is(*arguments, "--workspace", s3.url)
        read = [one for one in s3.requests if '"GET' in one and "workspace.json" in one]
        assert 1 <= len(read) <= MOST


@pytest.mark.ray
def test_so_does_the_main_job_with_nothing_to_do(count, inputs: Path, finished: Path, tmp_path):
    workspace = shutil.copytree(finished, tmp_path / "ws")
    assert 1 <= count(*main_job(inputs, workspace)) <= MOST
    assert 1 <= count("report", "--workspace", workspace) <= MOST
