"""Whether a worker can run: on a present node, or on one that an autoscaler may add."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import ray

from actors.ray_internals import (
    autoscaler_v1_report,
    cluster_status,
    has_autoscaler_v2,
)

SPOT, ON_DEMAND = "spot", "on_demand"
"""Capacity types: custom resources, 1 of either, that tell how machines of a node type are paid."""

Request = Mapping[str, float]
"""Resources of one worker by Ray's names."""

_MIRRORED = re.compile(r"node_[0-9a-f]{56}")  # node type in v1's report for a node started by hand


def fits(request: Request) -> bool:
    """Whether a present node has the requested resources, free or not."""
    return any(
        all(node["Resources"].get(name, 0) >= amount for name, amount in request.items())
        for node in ray.nodes()
        if node["Alive"]
    )


def is_there(node_id: str) -> bool:
    """Whether Ray knows the node as alive."""
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def missing_capacity() -> set[str]:
    """Return the capacity types that the cluster is known to lack; callers add to the set.

    Without an autoscaler that reports what it cannot add, only present nodes count. The reports of
    an autoscaler are remembered, because they come some seconds after a request.
    """
    if _names_refusals():
        return _refused_by(ray.get_runtime_context().gcs_address)
    return {capacity for capacity in (SPOT, ON_DEMAND) if not fits({capacity: 1})}


@functools.cache
def _refused_by(address: str) -> set[str]:
    return set()


def _names_refusals() -> bool:
    return has_autoscaler_v2() and bool(cluster_status().autoscaling_state.autoscaler_state_version)


def may_come(request: Request) -> bool:
    """Whether an autoscaler may add a node that has the requested resources.

    A pending worker must have requested them. The autoscaler v2 of Ray 2.60 lists the requests
    that no node type meets, and those beyond its maximum of machines; the autoscaler v1 lists
    nothing, so any node may come.
    """
    if not has_autoscaler_v2():
        return _has_v1_autoscaler()
    status = cluster_status()
    if not status.autoscaling_state.autoscaler_state_version:
        return False  # Ray leaves the autoscaler to Kubernetes, which runs none
    pending = status.cluster_resource_state.pending_resource_requests
    asked = sum(one.count for one in pending if _is(request, one.request))
    refused = status.autoscaling_state.infeasible_resource_requests
    return not asked or sum(_is(request, one) for one in refused) < asked


def machines_on_their_way() -> int:
    """Return the number of launched machines that have not joined, as far as it is reported."""
    if not has_autoscaler_v2():
        return 0
    return len(cluster_status().autoscaling_state.pending_instances)


def failed_launches() -> list[str]:
    """Return what the autoscaler could not launch lately, and why, as far as it is reported."""
    if not has_autoscaler_v2():
        return []
    failed = cluster_status().autoscaling_state.failed_instance_requests
    latest = {one.ray_node_type_name: one for one in sorted(failed, key=lambda f: f.failed_ts)}
    return [f"{name} could not be launched: {one.reason}" for name, one in latest.items()]


def _is(request: Request, other: Any) -> bool:
    bundle = {name: round(amount, 4) for name, amount in other.resources_bundle.items()}
    return bundle == {name: round(amount, 4) for name, amount in request.items() if amount}


def _has_v1_autoscaler() -> bool:
    types = autoscaler_v1_report().get("active_nodes", {})
    return any(not _MIRRORED.fullmatch(node_type) for node_type in types)
