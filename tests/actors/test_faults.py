"""Faults on a real Ray of several nodes: each run ends with the bytes of an undisturbed one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray.cloudpickle
from in_process import work_in_process
from ray_nodes import actors_of, kill_with_children, lose, start_cluster
from small_run import STAGES, Events, arrays, command

from actors.connection.cluster import Share, connected
from actors.pool import progress
from actors.pool.limits import PoolLimits
from actors.pool.pool import WorkerPool
from jobs.cli import main

ROOT = Path(__file__).parents[2]
ACTORS = {"gradients": "GradientWorker", "graph": "GraphWorker"}

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.cluster]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


@pytest.fixture(scope="module")
def whole_cluster():
    made = start_cluster()
    yield made
    made.shutdown()


@pytest.fixture
def cluster(whole_cluster):
    """A cluster with two nodes of two CPUs each, beside the head."""
    while len(whole_cluster.worker_nodes) < 2:
        whole_cluster.add_node(num_cpus=2)
    return whole_cluster


@pytest.fixture(scope="module")
def undisturbed(ready):
    """The workspace with gradients and graph, made in this process."""
    folder = shutil.copytree(ready, ready.parent / "undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        work_in_process(patch)
        for stage in STAGES:
            assert main(command(stage, folder, "local")) == 0
    return folder


@pytest.fixture
def workspace(undisturbed, tmp_path):
    """Copies the workspace as it was before a stage."""

    def before(stage, to=tmp_path / "ws"):
        shutil.copytree(undisturbed, to, dirs_exist_ok=True)
        for folder in {"gradients": ("gradients", "targets/gsm8k/gradients", "graph")}.get(
            stage, ("graph",)
        ):
            shutil.rmtree(to / folder)
        return to

    return before


@pytest.fixture
def events(monkeypatch):
    return Events(progress, monkeypatch)


def kill(actors):
    for actor in actors:
        actor.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("stage", STAGES)
def test_all_workers_are_killed_in_mid_part(stage, cluster, undisturbed, workspace, events, g2is):
    ws = workspace(stage)
    events.at("part_done", lambda: kill(actors_of(ACTORS[stage])))
    g2is(*command(stage, ws, cluster.address))
    assert events.of("worker_lost")[0]["items"]
    assert arrays(ws, stage) == arrays(undisturbed, stage)


def test_two_of_three_workers_are_killed(cluster, undisturbed, workspace, events, g2is):
    ws = workspace("gradients")
    events.at("part_done", lambda: kill(actors_of("GradientWorker")[:2]), workers=3)
    g2is(*command("gradients", ws, cluster.address, workers=3))
    assert len(events.of("worker_lost")) == 2
    assert arrays(ws, "gradients") == arrays(undisturbed, "gradients")


def test_a_node_is_lost_and_not_replaced(cluster, undisturbed, workspace, events, g2is):
    ws = workspace("gradients")
    node = next(iter(cluster.worker_nodes))
    events.at("part_done", lambda: lose(cluster, node), workers=2)
    g2is(*command("gradients", ws, cluster.address))
    assert len(events.of("worker_lost")) == 1
    assert len(events.of("worker_ready")) == 2
    assert arrays(ws, "gradients") == arrays(undisturbed, "gradients")


def test_all_nodes_are_lost_and_one_is_replaced(cluster, undisturbed, workspace, events, g2is):
    ws = workspace("gradients")

    def replace_all():
        for node in list(cluster.worker_nodes):
            lose(cluster, node)
        cluster.add_node(num_cpus=2)

    events.at("part_done", replace_all, workers=2)
    g2is(*command("gradients", ws, cluster.address))
    assert len(events.of("worker_lost")) == 2
    assert not events.of("part_set_aside")
    assert arrays(ws, "gradients") == arrays(undisturbed, "gradients")


def test_the_driver_is_killed_and_the_same_command_goes_on(
    cluster, undisturbed, workspace, events, g2is
):
    ws = workspace("gradients")
    arguments = command("gradients", ws, cluster.address)
    driver = subprocess.Popen([sys.executable, "-m", "jobs.cli", *arguments], cwd=ROOT)
    receipts = []
    while driver.poll() is None and not receipts:
        receipts = list((ws / "gradients").glob("part-*.json"))
        time.sleep(0.01)
    assert driver.poll() is None
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    written = {receipt: receipt.stat().st_ino for receipt in receipts}
    g2is(*arguments)
    assert {receipt: receipt.stat().st_ino for receipt in receipts} == written
    assert arrays(ws, "gradients") == arrays(undisturbed, "gradients")


def test_a_worker_hangs_and_another_does_its_parts(
    cluster, undisturbed, workspace, events, g2is, monkeypatch
):
    monkeypatch.setattr("jobs.parts.LIMITS", PoolLimits(slow_seconds=1.0))
    ws = workspace("gradients")
    frozen = []

    def freeze():
        frozen.extend(actors_of("GradientWorker")[:1])
        frozen[0].send_signal(signal.SIGSTOP)

    events.at("part_done", freeze, workers=2)
    g2is(*command("gradients", ws, cluster.address))
    assert events.of("part_started_twice")
    frozen[0].wait(60)
    assert arrays(ws, "gradients") == arrays(undisturbed, "gradients")


def test_a_truncated_part_and_a_flipped_bit_are_made_again_alone(
    cluster, undisturbed, workspace, g2is, tmp_path
):
    ws = Path(shutil.copytree(undisturbed, tmp_path / "ws"))
    truncated, flipped = (ws / f"gradients/part-0000{part}.npy" for part in (3, 5))
    truncated.write_bytes(truncated.read_bytes()[:-1])
    data = bytearray(flipped.read_bytes())
    data[-7] ^= 4
    flipped.write_bytes(data)
    before = {file: file.stat().st_ino for file in (ws / "gradients").glob("part-*.npy")}
    g2is(*command("gradients", ws, cluster.address))
    changed = {file for file, inode in before.items() if file.stat().st_ino != inode}
    assert {file.name.partition(".")[0] for file in changed} == {"part-00003", "part-00005"}
    assert arrays(ws, "gradients") == arrays(undisturbed, "gradients")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, and a function that says how large that is."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")

    def resize(size, *, first=False):
        options = f"size={size}" if first else f"remount,size={size}"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        subprocess.run(mount, check=True, capture_output=True)

    try:
        resize("32m", first=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    try:
        yield folder, resize
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_the_disk_is_full_and_then_has_space(
    cluster, undisturbed, workspace, small_disk, g2is, refused
):
    folder, resize = small_disk
    ws = workspace("gradients", folder / "ws")
    used = shutil.disk_usage(folder).used
    resize(used + 100 * 1024)
    sentence = refused(*command("gradients", ws, cluster.address))
    assert sentence.startswith(f"the disk is full, writing {folder}/ws/gradients/part-000")
    assert list((ws / "gradients").glob("part-*.json"))
    resize("32m")
    g2is(*command("gradients", ws, cluster.address))
    assert arrays(ws, "gradients") == arrays(undisturbed, "gradients")


class Eater:
    """Takes all memory that it can get, the first time."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def process(self, item: str) -> dict:
        first = not (self.folder / item).exists()
        (self.folder / item).touch()
        eaten = []
        while first and item == "eats":
            eaten.append(b"x" * 2**26)
            time.sleep(0.02)
        return {}


def test_a_worker_runs_out_of_memory(cluster, events, tmp_path):
    memory = psutil.virtual_memory()
    threshold = (memory.used + 2**31) / memory.total
    variables = {"RAY_memory_usage_threshold": f"{threshold:.3f}"}
    node = cluster.add_node(num_cpus=3, env_vars=variables)
    try:
        with connected(cluster.address):
            share = Share(workers=1, num_cpus=3, num_gpus=0)
            with WorkerPool(Eater, str(tmp_path), share) as pool:
                receipts = pool.run(["eats"], "memory")
    finally:
        cluster.remove_node(node)
    assert receipts == {"eats": {}}
    assert "memory" in events.of("worker_lost")[0]["reason"]


def test_one_two_and_four_workers_give_the_same_graph(cluster, undisturbed, workspace, g2is):
    for workers in (1, 4):
        ws = workspace("graph")
        g2is(*command("graph", ws, cluster.address, workers=workers))
        assert arrays(ws, "graph") == arrays(undisturbed, "graph")


def test_a_node_that_does_not_see_the_workspace_is_named(cluster, workspace, refused):
    ws = workspace("gradients")
    if os.geteuid() != 0:
        pytest.skip("only root can hide a folder from a node")
    ray_start = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=5"]
    hidden = f'mount -t tmpfs tmpfs {ws.parent} && exec "$@"'
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", hidden, "sh", *ray_start, f"--address={cluster.address}"],
        stdout=subprocess.DEVNULL,
    )
    try:
        with connected(cluster.address):
            while ray.cluster_resources()["CPU"] < 2 * 2 + 5:
                assert node.poll() is None
                time.sleep(0.1)
        sentence = refused(*command("gradients", ws, cluster.address, workers=1))
    finally:
        kill_with_children(node.pid)
        node.wait()
    assert sentence.startswith("node ")
    assert f"does not see the workspace {ws}: put the workspace where every node " in sentence
