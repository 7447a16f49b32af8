"""The Ray that a command uses, and a check that it answers before `ray.init` joins it."""

from __future__ import annotations

import logging
import platform
import re
import socket
from collections.abc import Mapping

import grpc
import ray
from ray.exceptions import AuthenticationError

from actors import ray_internals
from g2is_ray.errors import SettingError, WorkError

log = logging.getLogger(__name__)

LOCAL = "local"


def chosen(address: str, environment: Mapping[str, str]) -> str:
    """Return the address to use: `local`, or HOST:PORT of a cluster.

    Args:
        address: as given; if it is blank, RAY_ADDRESS counts.

    Raises:
        SettingError: the address is not that of a cluster.
        WorkError: the address is `auto`, and no cluster runs on this machine.
    """
    given = address.strip() or environment.get("RAY_ADDRESS", "").strip() or LOCAL
    if given == LOCAL:
        return LOCAL
    if given == "auto":
        given = environment.get("RAY_ADDRESS", "").strip()
        if given in ("", "auto", LOCAL):
            given = ray_internals.detected_address()
        if not given:
            raise WorkError(
                "address is auto, and no Ray cluster runs on this machine: start one with `ray "
                "start --head`, or use local"
            )
    return _host_and_port(given)


def _host_and_port(address: str) -> str:
    if address.startswith("ray://"):
        raise SettingError(
            f"address {address} is of Ray Client, which is not supported: run the command on a "
            "machine of the cluster with --address auto, or use `g2is submit`"
        )
    if address.startswith(("http://", "https://")):
        raise SettingError(
            f"address {address} is the URL of a dashboard: use `g2is submit`, or give HOST:PORT of "
            "the cluster, such as 10.0.0.1:6379"
        )
    host, colon, port = address.rpartition(":")
    if not (colon and host and "://" not in address and "/" not in address):
        raise _no_address(address)
    if not (port.isdecimal() and 0 < int(port) < 65536):
        raise _no_address(address)
    if ":" in host and not re.fullmatch(r"\[[0-9a-fA-F:.%]+\]", host):
        raise _no_address(address)
    return address


def _no_address(address: str) -> SettingError:
    return SettingError(
        f"address should be local, auto or HOST:PORT of a cluster, such as 10.0.0.1:6379, got "
        f"{address!r}"
    )


def check(address: str, *, connect_seconds: float = 10.0, answer_seconds: float = 15.0) -> None:
    """Check that a cluster answers, accepts the token, and has this machine's versions.

    Args:
        address: HOST:PORT.
        connect_seconds, answer_seconds: that the cluster may take to accept a connection, and to
            answer.

    Raises:
        WorkError: a check fails, or the cluster does not answer in time.
    """
    reached = ray_internals.as_ray_reaches(address)
    named = address if reached == address else f"{address} (as {reached})"
    host, _, port = reached.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), connect_seconds).close()
    except OSError as error:
        raise WorkError(
            f"no Ray cluster answers at {named}: {error.strerror or error}; check the address, and "
            "that the cluster is up"
        ) from None
    try:
        versions = ray_internals.cluster_versions(reached, answer_seconds)
    except AuthenticationError:  # this machine has no token to send
        raise _refused_token(named) from None
    except grpc.RpcError as error:
        if ray_internals.is_refused_token(error):
            raise _refused_token(named) from None
        raise WorkError(
            f"what answers at {named} is no Ray cluster, or one that is shutting down: check host "
            "and port"
        ) from None
    if problem := versions_problem(versions):
        raise WorkError(f"the cluster at {named} {problem}")


def _refused_token(named: str) -> WorkError:
    return WorkError(
        f"the cluster at {named} does not accept the token of this machine: set "
        "RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
    )


def versions_problem(
    cluster: Mapping[str, str],
    ray_version: str = ray.__version__,
    python_version: str = platform.python_version(),
) -> str:
    """Return how a cluster's versions of Ray and Python differ from those of this machine."""
    theirs = cluster.get("ray_version", ""), cluster.get("python_version", "")
    if not all(theirs) or theirs == (ray_version, python_version):
        return ""
    return (
        f"has Ray {theirs[0]} on Python {theirs[1]}, and this machine Ray {ray_version} on Python "
        f"{python_version}: use the same versions on both"
    )
