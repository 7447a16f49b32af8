"""Whether a worker can run: on a node that is there, or on one that an autoscaler brings."""

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
"""Custom resources, 1 of either, by which node types say how their machines are paid for."""

Request = Mapping[str, float]
"""Resources of one worker, by Ray's names for them."""

_MIRRORED = re.compile(r"node_[0-9a-f]{56}")  # v1's type of a node that nobody launched


def fits(request: Request) -> bool:
    """Whether a node that is there has what is requested, free or not."""
    return any(
        all(node["Resources"].get(name, 0) >= amount for name, amount in request.items())
        for node in ray.nodes()
        if node["Alive"]
    )


def is_there(node_id: str) -> bool:
    """Whether the node is alive, as far as Ray knows by now."""
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def missing_markets() -> set[str]:
    """Markets that the cluster is known not to offer; a set to add to.

    Without an autoscaler that says what it cannot bring, only nodes that are there count. With
    one, what it said is remembered, because it takes some seconds to answer.
    """
    if _names_refusals():
        return _refused_by(ray.get_runtime_context().gcs_address)
    return {market for market in (SPOT, ON_DEMAND) if not fits({market: 1})}


@functools.cache
def _refused_by(address: str) -> set[str]:
    return set()


def _names_refusals() -> bool:
    return has_autoscaler_v2() and bool(cluster_status().autoscaling_state.autoscaler_state_version)


def may_come(request: Request) -> bool:
    """Whether an autoscaler may bring a node that has what is requested.

    A pending worker must have been asking for it. Ray 2.60's autoscaler (v2) lists the requests
    that none of its node types meets, and those beyond the machines it may launch; the old one
    (v1) says nothing, so that anything may come.
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
    """Machines that the autoscaler has got and that have not joined yet, as far as it says."""
    if not has_autoscaler_v2():
        return 0
    return len(cluster_status().autoscaling_state.pending_instances)


def failed_launches() -> list[str]:
    """What the autoscaler could not launch lately, and why; nothing where it does not say."""
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
