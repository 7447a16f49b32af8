"""The worker pool finishes everything that can be finished, on a real Ray."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle

from actors.connection.cluster import Share, connected, share_of_cluster
from actors.pool.limits import PoolLimits
from actors.pool.pool import WorkerPool
from actors.pool.shared import SharedWorkspace
from g2is_ray.config import ExecutionSettings
from g2is_ray.errors import InputError, WorkError, WorkspaceError
from g2is_ray.workspace.workspace import Workspace

pytestmark = pytest.mark.ray
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


class Worker:
    """Counts its calls in files, and misbehaves as each item says."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.lock, self.busy, self.met = threading.Lock(), 0, False

    def process(self, item: str) -> dict:
        with self.lock:
            self.busy += 1
        try:
            return self.obey(item)
        finally:
            with self.lock:
                self.busy -= 1

    def obey(self, item: str) -> dict:
        if item.startswith("meets"):  # ends when two of its kind are here at once
            while self.busy < 2 and not self.met:
                time.sleep(0.01)
            self.met = True
        calls = self.folder / item
        with calls.open("a") as file:
            file.write("x")
        count = len(calls.read_text())
        _, arrow, other = item.partition(">")
        while arrow and not list(self.folder.glob(f"{other}*")):  # ends when the other has begun
            time.sleep(0.01)
        if item.startswith("dies-always") or (item.startswith("dies-once") and count == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        while item.startswith("hangs-once") and count == 1:
            time.sleep(1)
        if item.startswith("fails-twice") and count <= 2:
            raise RuntimeError("not yet")
        if item.startswith("fails-always"):
            raise RuntimeError("never")
        if item.startswith("refuses"):
            raise InputError("the model cannot be loaded: it is not there")
        return {"item": item, "pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}


@pytest.fixture(scope="module", autouse=True)
def _ray(ray_address: str) -> Iterator[None]:
    with connected(ray_address):
        yield


def run(folder: Path, items: list[str], workers: int = 2, **options: Any) -> dict:
    share = Share(workers=workers, num_cpus=1, num_gpus=0)
    written = options.pop("written", None)
    with WorkerPool(Worker, str(folder), share, **options) as pool:
        return pool.run(items, "test", written)


def calls(folder: Path, item: str) -> int:
    return len((folder / item).read_text())


def test_every_item_is_done_once(tmp_path: Path) -> None:
    items = ["a>b", "b>a", *(f"item-{i}" for i in range(7))]
    receipts = run(tmp_path, items)
    assert sorted(receipts) == items
    assert all(calls(tmp_path, item) == 1 for item in items)
    assert len({receipt["pid"] for receipt in receipts.values()}) == 2


@pytest.mark.slow
def test_workers_that_never_come_are_not_waited_for(tmp_path: Path) -> None:
    workers = 2 + int(ray.cluster_resources()["CPU"])
    items = [f"item-{i}" for i in range(2 * workers)]
    assert sorted(run(tmp_path, items, workers=workers)) == sorted(items)


@pytest.mark.slow
def test_a_worker_leaves_an_item_to_one_that_is_still_to_come(tmp_path: Path) -> None:
    receipts = run(tmp_path, ["a>b", "b>a"], workers=2, tasks_per_worker=2)
    assert len({receipt["pid"] for receipt in receipts.values()}) == 2


def test_a_killed_worker_costs_only_its_item_a_second_call(tmp_path: Path) -> None:
    receipts = run(tmp_path, ["a", "dies-once", "b", "c"])
    assert sorted(receipts) == ["a", "b", "c", "dies-once"]
    assert calls(tmp_path, "dies-once") == 2
    assert calls(tmp_path, "c") == 1


def test_a_worker_may_have_two_items_at_a_time(tmp_path: Path) -> None:
    receipts = run(tmp_path, ["meets-a", "meets-b"], workers=1, tasks_per_worker=2)
    assert len({receipt["pid"] for receipt in receipts.values()}) == 1


@pytest.mark.slow
def test_a_killed_workers_two_items_are_both_done_again(tmp_path: Path) -> None:
    items = ["a", "dies-once", "b", "c"]
    assert sorted(run(tmp_path, items, workers=1, tasks_per_worker=2)) == sorted(items)
    assert calls(tmp_path, "dies-once") == 2


def test_a_worker_keeps_to_the_kind_of_item_that_it_had(tmp_path: Path) -> None:
    items = ["a-0>b-0", "b-0>a-0", "a-1", "b-1", "b-2>a-2", "a-2>b-2"]
    receipts = run(tmp_path, items, affinity=lambda item: item[0])
    by_kind = {kind: {receipts[i]["pid"] for i in items if i[0] == kind} for kind in "ab"}
    assert len(by_kind["a"]) == len(by_kind["b"]) == 1
    assert by_kind["a"] != by_kind["b"]


def test_an_item_that_fails_twice_is_done_the_third_time(tmp_path: Path) -> None:
    assert "fails-twice" in run(tmp_path, ["fails-twice", "a"])
    assert calls(tmp_path, "fails-twice") == 3


def test_an_item_that_always_fails_is_named_after_the_rest_is_done(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"gave up on 1 of 4 \(fails-always failed 3 times: ne"):
        run(tmp_path, ["fails-always", "a", "b", "c"], workers=1)
    assert calls(tmp_path, "fails-always") == 3
    assert [calls(tmp_path, item) for item in "abc"] == [1, 1, 1]


@pytest.mark.slow
def test_an_item_that_always_kills_its_worker_is_named_after_the_rest_is_done(
    tmp_path: Path,
) -> None:
    items = ["dies-always", "a", "b", "c"]
    with pytest.raises(WorkError, match=r"gave up on 1 of 4 \(dies-always ended its worker 5 "):
        run(tmp_path, items, workers=1, tasks_per_worker=2)
    assert calls(tmp_path, "dies-always") == 5
    assert all((tmp_path / item).exists() for item in "abc")


def test_an_item_that_hangs_is_done_by_another_worker(tmp_path: Path) -> None:
    events: list[str] = []
    items = ["hangs-once", "a", "b", "c"]
    receipts = run(
        tmp_path,
        items,
        on_event=lambda event, facts: events.append(event),
        limits=PoolLimits(slow_seconds=0.5),
    )
    assert sorted(receipts) == sorted(items)
    assert events.count("part_started_twice") == events.count("worker_lost") == 1
    assert calls(tmp_path, "hangs-once") == 2


@pytest.mark.slow
def test_a_lone_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    items = ["a", "b", "c", "hangs-once", "d"]
    limits = PoolLimits(hung_seconds=1)
    assert sorted(run(tmp_path, items, workers=1, limits=limits)) == sorted(items)
    assert calls(tmp_path, "hangs-once") == 2


@pytest.mark.slow
def test_what_two_workers_wrote_at_once_is_checked_and_done_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def written(item: str) -> dict | None:
        asked.append(item)
        return None

    limits = PoolLimits(slow_seconds=0.5)
    run(tmp_path, ["hangs-once", "a", "b", "c"], written=written, limits=limits)
    assert asked == ["hangs-once"]
    assert calls(tmp_path, "hangs-once") == 3


def test_an_error_of_the_users_ends_the_run_at_once_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^the model cannot be loaded: it is not there$"):
        run(tmp_path, ["refuses", *(f"later-{i}" for i in range(20))], workers=1)
    assert not (tmp_path / "later-19").exists()


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_run_with_the_reason(tmp_path: Path) -> None:
    share = Share(workers=1, num_cpus=1, num_gpus=0)
    with (
        WorkerPool(Worker, None, share) as pool,
        pytest.raises(WorkError, match=r"workers cannot start: .*NoneType"),
    ):
        pool.run(["a"], "test")


def test_workers_that_no_node_can_hold_end_the_run_with_the_reason(tmp_path: Path) -> None:
    share, limits = Share(workers=2, num_cpus=1, num_gpus=1), PoolLimits(certain_seconds=0)
    with (
        WorkerPool(Worker, str(tmp_path), share, limits=limits) as pool,
        pytest.raises(WorkError, match=r"^test: no node of the cluster has 1 CPU and 1 GPU "),
    ):
        pool.run(["a"], "test")


def test_workers_that_do_not_see_the_workspace_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"^node [\d.]+ does not see the workspace /"):
        run(tmp_path, ["a"], workspace=SharedWorkspace(str(tmp_path / "elsewhere")))


def test_workers_leave_nothing_in_the_workspace_that_they_share(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path / "ws"))
    workspace.stage("pool").begin({})
    run(tmp_path, ["a"], workspace=SharedWorkspace(workspace.url))
    assert workspace.storage.names("") == ["workspace.json"]


def test_every_step_of_an_item_is_an_event(tmp_path: Path) -> None:
    events: list[tuple[str, str]] = []
    items = ["fails-twice", "a"]
    run(
        tmp_path,
        items,
        workers=1,
        on_event=lambda event, facts: events.append((event, str(facts.get("item", "")))),
    )
    assert events == [
        ("worker_ready", ""),
        ("part_failed", "fails-twice"),
        ("part_done", "a"),
        ("part_failed", "fails-twice"),
        ("part_done", "fails-twice"),
        ("progress", ""),
    ]


def test_the_workers_of_a_pool_serve_one_work_list_after_another(tmp_path: Path) -> None:
    share = Share(workers=2, num_cpus=1, num_gpus=0)
    began: list[int] = []
    heads: list[str] = []

    def on_event(event: str, facts: dict[str, Any]) -> None:
        heads.append(facts["label"])
        if event == "worker_ready":
            began.append(facts["worker"])

    with WorkerPool(Worker, str(tmp_path), share, on_event=on_event) as pool:
        first = pool.run(["a>b", "b>a"], "first")
        with pytest.raises(WorkError, match=r"^second: gave up on 1 of 2 \(fails-always"):
            pool.run(["c", "fails-always"], "second")
        third = pool.run(["d>e", "e>d"], "third")
    assert began == [1, 2]
    assert list(dict.fromkeys(heads)) == ["first", "second", "third"]
    pids = [{receipt["pid"] for receipt in receipts.values()} for receipts in (first, third)]
    assert pids[0] == pids[1]


def test_a_worker_that_dies_between_two_work_lists_is_replaced(tmp_path: Path) -> None:
    share = Share(workers=1, num_cpus=1, num_gpus=0)
    with WorkerPool(Worker, str(tmp_path), share) as pool:
        before = pool.run(["a"], "first")["a"]["pid"]
        os.kill(before, signal.SIGKILL)
        after = pool.run(["b"], "second")["b"]["pid"]
    assert after != before


def test_workers_without_gpu_see_none(tmp_path: Path) -> None:
    assert run(tmp_path, ["a"])["a"]["gpus"] == ""


def test_cpus_are_split_evenly_where_there_is_no_gpu() -> None:
    one = share_of_cluster(ExecutionSettings(accelerator="cpu"), workers=1)
    two = share_of_cluster(ExecutionSettings(accelerator="cpu"), workers=2)
    assert (one.num_cpus, two.num_cpus) == (2, 1)  # the session's Ray has two
    assert share_of_cluster(ExecutionSettings(accelerator="gpu"), workers=3) == Share(
        workers=3, num_cpus=1, num_gpus=1, spot_patience_seconds=600
    )
