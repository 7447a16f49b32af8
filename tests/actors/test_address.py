"""The address of a cluster: which one is meant, and whether it answers, within seconds."""

import functools
import json
import platform
import socket
import threading
from concurrent import futures

import grpc
import pytest
import ray
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from actors import ray_internals
from actors.connection import address
from g2is_ray.errors import SettingError, WorkError


@pytest.mark.parametrize(
    ("given", "variable", "used"),
    [
        ("", None, "local"),
        ("", "", "local"),
        ("  ", " \t", "local"),
        ("", "10.0.0.1:6379", "10.0.0.1:6379"),
        ("local", "10.0.0.1:6379", "local"),
        ("auto", "10.0.0.1:6379", "10.0.0.1:6379"),
        (" head:6379 ", None, "head:6379"),
        ("[::1]:6379", None, "[::1]:6379"),
    ],
)
def test_the_address_that_is_used(given, variable, used):
    environment = {} if variable is None else {"RAY_ADDRESS": variable}
    assert address.chosen(given, environment) == used


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("ray://head:10001", "is of Ray Client"),
        ("http://127.0.0.1:8265", "is the URL of a dashboard: use `g2is submit`"),
        ("anyscale://x", "should be local, auto or HOST:PORT"),
        ("head", "should be local, auto or HOST:PORT"),
        ("head:", "should be local, auto or HOST:PORT"),
        (":6379", "should be local, auto or HOST:PORT"),
        ("head:0", "should be local, auto or HOST:PORT"),
        ("head:65536", "should be local, auto or HOST:PORT"),
        ("head:x", "should be local, auto or HOST:PORT"),
        ("::1:6379", "should be local, auto or HOST:PORT"),
    ],
)
def test_what_is_no_address_is_refused(given, why):
    with pytest.raises(SettingError, match=r"^address ") as refusal:
        address.chosen(given, {})
    assert why in str(refusal.value)


def test_auto_without_a_cluster_says_what_starts_one(monkeypatch):
    monkeypatch.setattr(ray_internals, "detected_address", lambda: "")
    with pytest.raises(WorkError, match=r"^address is auto, and no Ray cluster runs on this"):
        address.chosen("auto", {})


# Asking an address

check = functools.partial(address.check, connect_seconds=2.0, answer_seconds=2.0)


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(ray_internals, "as_ray_reaches", lambda given: given)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)


def test_a_port_at_which_nothing_listens_is_named():
    with pytest.raises(WorkError, match=r"^no Ray cluster answers at 127.0.0.1:9: Connection ref"):
        check("127.0.0.1:9")


def test_a_name_that_is_not_known_is_named():
    with pytest.raises(WorkError, match=r"^no Ray cluster answers at no-such-host.invalid:6379: "):
        check("no-such-host.invalid:6379")


def test_a_port_that_says_nothing_is_named():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(WorkError, match=rf"^what answers at {where} is no Ray cluster"):
            check(where)


def test_a_port_of_something_else_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            while True:
                try:
                    one, _ = other.accept()
                except OSError:
                    return
                with one:
                    one.recv(100)
                    one.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        where = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(WorkError, match=rf"^what answers at {where} is no Ray cluster"):
            check(where)


class Head(gcs_service_pb2_grpc.InternalKVGcsServiceServicer):
    """A head's store of what the cluster is."""

    def __init__(self, metadata, token):
        self.metadata, self.token = metadata, token

    def InternalKVGet(self, request, context):  # noqa: N802  Ray's name
        if dict(context.invocation_metadata()).get("authorization") != self.token:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        assert (request.key, request.namespace) == (b"CLUSTER_METADATA", b"cluster")
        return gcs_service_pb2.InternalKVGetReply(value=json.dumps(self.metadata).encode())


@pytest.fixture
def head():
    """Starts a head that answers as Ray's does; returns its address."""
    servers = []

    def start(token=None, **metadata):
        server = grpc.server(futures.ThreadPoolExecutor(1))
        gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(
            Head(metadata, token), server
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


def test_a_cluster_of_the_same_versions_is_joined(head):
    check(head(ray_version=ray.__version__, python_version=platform.python_version()))


def test_other_versions_are_named_both(head):
    with pytest.raises(WorkError) as refusal:
        check(head(ray_version="2.9.0", python_version="3.10.1"))
    for version in ("2.9.0", "3.10.1", ray.__version__):
        assert version in str(refusal.value)


def test_a_token_that_is_not_accepted_is_named(head):
    with pytest.raises(WorkError, match="does not accept the token of this machine"):
        check(head(token="Bearer x"))


def test_a_token_that_this_machine_lacks_is_named(head, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    ray_internals.read_authentication_again()
    try:
        with pytest.raises(WorkError, match="does not accept the token of this machine"):
            check(head(token="Bearer x"))
    finally:
        monkeypatch.undo()
        ray_internals.read_authentication_again()
