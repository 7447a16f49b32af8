"""Ray's autoscaler brings and removes nodes of a made-up cloud while gradients are taken."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray.cloudpickle
from in_process import work_in_process
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray_nodes import ATTENTIVE, kill_with_children
from small_run import Events, arrays, command

from actors.connection.cluster import Share, connected
from actors.pool import progress
from actors.pool.limits import PoolLimits
from actors.pool.pool import WorkerPool
from g2is_ray.errors import WorkError
from jobs.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.cluster]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

PATIENCE_SECONDS = 120
HEAD = "ray.head.default"
NOTHING = [
    "initialization_commands",
    "cluster_synced_files",
    *(f"{which}setup_commands" for which in ("", "head_", "worker_")),
    *(f"{which}_start_ray_commands" for which in ("head", "worker")),
]


@pytest.fixture(scope="module", autouse=True)
def without_token():
    """No token for head, machines and driver, whether or not this machine has one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def undisturbed(ready):
    """The workspace with gradients, made in this process."""
    folder = shutil.copytree(ready, ready.parent / "undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        work_in_process(patch)
        assert main(command("gradients", folder, "local", workers=1)) == 0
    return folder


class Cloud:
    """A head with an autoscaler, and the machines that it has started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        host, port = ray.util.get_node_ip_address(), free_port()
        self.address = f"{host}:{port}"
        (folder / "cluster.json").write_text(json.dumps(self._config()))
        environment = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_enable_autoscaler_v2": "1",  # what `ray up` starts
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "G2IS_UNCHECKED_GPU": "1",  # the machines' are made up
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "helpers"), *sys.path]),
        }
        start = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
        start += [f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
        start += ["--disable-usage-stats", f"--autoscaling-config={folder}/cluster.json"]
        start += [f"--system-config={json.dumps(ATTENTIVE)}"]
        with (folder / "head.log").open("w") as log:
            self._head = subprocess.Popen(
                start, env=os.environ | environment, stdout=log, stderr=log
            )
        wait_until(lambda: self._head.poll() is None and is_open(host, port))

    def _config(self) -> dict:
        def machine(capacity):
            resources = {"CPU": 1, "GPU": 1, capacity: 1, "object_store_memory": 80 * 2**20}
            return {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": 2}

        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        return {
            "cluster_name": "made-up",
            "max_workers": 4,
            "idle_timeout_minutes": 0.05,
            "provider": {
                "type": "external",
                "module": "fake_cloud.FakeCloud",
                "gcs_address": self.address,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "disable_node_updaters": True,
                "folder": str(self.folder),
            },
            "auth": {},
            "file_mounts": {},
            **{name: [] for name in NOTHING},
            "available_node_types": {
                HEAD: head,
                "gpu_spot": machine("spot"),
                "gpu_on_demand": machine("on_demand"),
            },
            "head_node_type": HEAD,
        }

    def machines(self) -> list[int]:
        """Process ids of the machines that are running."""
        pids = [int(file.read_text()) for file in self.folder.glob("pid-*")]
        return [pid for pid in pids if psutil.pid_exists(pid) and is_alive(pid)]

    def started(self) -> int:
        return len(list(self.folder.glob("pid-*")))

    def shutdown(self) -> None:
        kill_with_children(self._head.pid)
        self._head.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


def is_open(host: str, port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex((host, port)) == 0


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cloud(undisturbed, tmp_path_factory):
    made = Cloud(tmp_path_factory.mktemp("cloud"))
    yield made
    made.shutdown()


@pytest.fixture
def events(monkeypatch):
    return Events(progress, monkeypatch)


def test_nodes_come_are_taken_come_again_and_go(cloud, ready, undisturbed, events, g2is, tmp_path):
    ws = shutil.copytree(ready, tmp_path / "ws")
    assert not cloud.machines()

    def take_away():
        for pid in cloud.machines():
            kill_with_children(pid)

    events.at("part_done", take_away, workers=2)
    g2is(*command("gradients", ws, cloud.address, "--accelerator", "gpu"))
    assert len(events.of("worker_lost")) == 2
    assert {facts["capacity"] for facts in events.of("worker_ready")} == {"spot"}
    assert cloud.started() > 2
    assert arrays(ws, "gradients") == arrays(undisturbed, "gradients")
    wait_until(lambda: not cloud.machines())


def test_spot_machines_are_refused_and_on_demand_ones_come(
    cloud, ready, undisturbed, events, g2is, tmp_path
):
    ws = shutil.copytree(ready, tmp_path / "ws")
    (cloud.folder / "refuse-gpu_spot").touch()
    patience = ["--accelerator", "gpu", "--spot-patience-seconds", "3"]
    g2is(*command("gradients", ws, cloud.address, *patience))
    assert (cloud.folder / "refused-gpu_spot").exists()
    assert events.of("on_demand")
    assert {facts["capacity"] for facts in events.of("worker_ready")} == {"on_demand"}
    assert arrays(ws, "gradients") == arrays(undisturbed, "gradients")


class Idle:
    """Never gets to run."""

    def __init__(self, order):
        pass

    def process(self, item):
        return {}


def test_what_no_node_type_offers_ends_with_the_reason(cloud):
    share = Share(workers=1, num_cpus=1, num_gpus=4)
    with (
        connected(cloud.address),
        WorkerPool(Idle, None, share, limits=PoolLimits(certain_seconds=4)) as pool,
        pytest.raises(WorkError, match=r"has 1 CPU and 4 GPU for a work"),
    ):
        pool.run(["a"], "idle")
