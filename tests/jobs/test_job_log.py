"""A job's log is printed once and in order, whatever the connection does."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from g2is_ray.errors import WorkError
from jobs import job_log

WHOLE = "".join(f"line {i}\n" for i in range(6))
CUT = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


@dataclass
class Cluster:
    """A cluster as seen through connections that end: each sends the log's begin, then a fault.

    A fault of None ends a connection in good order; of a job's state, it is the last one's.
    """

    connections: list[tuple[int, Exception | None]]
    log: str = WHOLE
    status: JobStatus = JobStatus.SUCCEEDED
    exit_code: int | None = 0
    reachable: list[bool] = field(default_factory=list)  # at each question; afterwards, yes

    async def tail_job_logs(self, job):
        length, fault = self.connections.pop(0)
        for character in self.log[:length]:
            yield character
            await asyncio.sleep(0)
        if fault:
            raise fault

    def get_job_info(self, job):
        if self.reachable and not self.reachable.pop(0):
            raise ConnectionError("connection refused")
        ended = not self.connections
        status = self.status if ended else JobStatus.RUNNING
        return SimpleNamespace(status=status, driver_exit_code=self.exit_code, message="it says so")

    def get_job_logs(self, job):
        return self.log if not self.connections else ""


def follow(cluster, **more):
    """The exit status, what was printed, and how long it was waited for."""
    printed, pauses = [], []
    status = job_log.follow(
        cluster, "job-1", "http://head", sleep=pauses.append, show=printed.append, **more
    )
    return status, "".join(printed), sum(pauses)


@pytest.mark.parametrize(
    "connections",
    [
        [(len(WHOLE), None)],
        [(3, CUT), (0, CUT), (20, OSError("reset")), (len(WHOLE), None)],
        [(10, None), (10, None), (11, None)],
        [(0, CUT)],
    ],
)
def test_every_character_is_printed_once(connections):
    status, printed, _ = follow(Cluster(connections))
    assert (status, printed) == (0, WHOLE)


def test_a_cluster_out_of_reach_is_asked_again():
    cluster = Cluster([(5, CUT), (9, CUT), (0, CUT)], reachable=[False, False, True])
    status, printed, waited = follow(cluster)
    assert (status, printed) == (0, WHOLE)
    assert waited > 0


def test_a_cluster_that_stays_away_leaves_the_job_running_and_says_how_to_follow_it(caplog):
    cluster = Cluster([(5, CUT)] * 999, reachable=[False] * 999)
    status, printed, waited = follow(cluster, patience_seconds=100)
    assert (status, printed) == (job_log.LOST, WHOLE[:5])
    assert 100 <= waited < 200
    assert "goes on" in caplog.text
    assert "ray job logs --follow --address http://head job-1" in caplog.text


def test_connections_that_end_in_good_order_never_use_up_the_patience():
    status, _, waited = follow(Cluster([(5, None)] * 300), patience_seconds=100)
    assert status == 0
    assert waited > 100


def test_a_jobs_own_exit_status_is_returned():
    cluster = Cluster([(9, None)], status=JobStatus.FAILED, exit_code=2)
    assert follow(cluster)[0] == 2


def test_a_head_that_was_replaced_is_named():
    cluster = Cluster([(9, RuntimeError("x"))])
    gone = RuntimeError("Request failed with status code 404: Job job-1 does not exist.")

    def get_job_info(job):
        raise gone

    cluster.get_job_info = get_job_info
    with pytest.raises(WorkError, match=r"^the cluster at http://head no longer knows job job-1"):
        follow(cluster)


@pytest.mark.parametrize(
    ("log", "exit_code"),
    [
        ("/usr/bin/python: No module named jobs\n", 1),
        (
            "Error while finding module specification for 'jobs.main_job' (ModuleNotFoundError: "
            "No module named 'jobs')\n",
            1,
        ),
        ("ModuleNotFoundError: No module named 'g2is_ray'\n", 1),
        ("sh: 1: python: not found\n", 127),
    ],
)
def test_a_head_without_the_project_is_one_sentence(log, exit_code):
    cluster = Cluster([(0, None)], log=log, status=JobStatus.FAILED, exit_code=exit_code)
    with pytest.raises(WorkError, match="does not have g2is-ray"):
        follow(cluster)


def test_a_package_that_is_missing_otherwise_is_the_jobs_own_failure():
    log = "ModuleNotFoundError: No module named 'jobsearch'\n"
    cluster = Cluster([(0, None)], log=log, status=JobStatus.FAILED, exit_code=1)
    assert follow(cluster)[0] == 1
