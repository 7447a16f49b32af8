"""Several Ray nodes on this machine, and what can be done to them."""

import os
import signal

import psutil
import pytest
from ray.cluster_utils import Cluster

ATTENTIVE = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}
"""Ray's settings by which a head soon notices that a node is lost."""


PROMPT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process saved per training
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # or each training ends up to 2 s late
}
"""Environment of a Ray that a run starts itself."""


def start_node() -> Cluster:
    """One node of two CPUs, which reports its metrics every second."""
    head = {
        "num_cpus": 2,
        "include_dashboard": True,  # Ray Train asks it for the state of actors
        "object_store_memory": 128 * 2**20,
        "_system_config": {"metrics_report_interval_ms": 1000},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PROMPT.items():
            patch.setenv(name, value)
        return Cluster(initialize_head=True, head_node_args=head)


def start_cluster() -> Cluster:
    """A head that runs nothing."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": ATTENTIVE}
    return Cluster(initialize_head=True, head_node_args=head)


def actors_of(name: str) -> list[psutil.Process]:
    """Processes of the actors of a class, on the nodes that this process has started."""
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.NoSuchProcess:
            continue
        if command and command[0].startswith(f"ray::{name}"):
            found.append(process)
    return found


def lose(cluster: Cluster, node) -> None:
    """End a node as a machine is lost: all of its processes at once, actors too."""
    kill_with_children(node.all_processes["raylet"][0].process.pid)
    cluster.remove_node(node, allow_graceful=False)


def kill_with_children(pid: int) -> None:
    """End a process and all that it has started."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in family:
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
