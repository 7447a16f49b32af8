"""Several Ray nodes on this machine, and what can be done to them."""

import os
import signal

import psutil
from ray.cluster_utils import Cluster

ATTENTIVE = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}
"""Ray's settings by which a head soon notices that a node is lost."""


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
