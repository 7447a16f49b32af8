"""Ray as a run starts it on this machine: only its user can reach it, and only with the token."""

import json
import os
import resource
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from actors.connection import machine
from g2is_ray.workspace import scratch

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.ray

HOLD = """
import json, os, psutil, ray
from actors.connection.cluster import connected
with connected("local"):
    own = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    listening = [c.laddr.ip for c in psutil.net_connections("inet")
                 if c.status == psutil.CONN_LISTEN and c.pid in own]
    gcs = ray.get_runtime_context().gcs_address
    dashboard = ray._private.worker.global_worker.node.webui_url
    print(json.dumps({"listening": listening, "gcs": gcs, "dashboard": dashboard}), flush=True)
    input()
"""

HOSTILE = """
import json, os, resource, sys
from actors.connection.cluster import connected
with connected("  "):
    import ray
    folder = os.environ["RAY_TMPDIR"]
    ray.get(ray.remote(lambda: 1).remote())
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    print(json.dumps({"folder": folder, "open_files": limit}), flush=True)
    input()
"""

ASK = """
import sys
from ray._raylet import GcsClient
print(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, 10))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def environment(home, **more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), **more}


@pytest.fixture(scope="module")
def local(home):
    """Where a local Ray listens, by its own account and by the system's."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=ROOT,
        env=environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield json.loads(process.stdout.readline())
        process.communicate("\n", timeout=60)
    finally:
        process.kill()


def test_every_port_is_on_the_loopback_interface(local):
    assert len(local["listening"]) > 5
    assert {ip.removeprefix("::ffff:") for ip in local["listening"]} == {"127.0.0.1"}


def test_the_token_is_the_users_own(local, home):
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


@pytest.fixture(scope="module")
def token(local, home):
    return (home / ".ray" / "auth_token").read_text().strip()


def asked(gcs, home, **variables):
    """What a client of another home directory is told by Ray's control service."""
    command = [sys.executable, "-c", ASK, gcs]
    own = environment(home, **variables)
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "variables",
    [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}],
)
def test_a_client_without_the_token_is_refused(variables, local, tmp_path):
    answer = asked(local["gcs"], tmp_path, **variables)
    assert answer.returncode != 0
    assert "RAY_AUTH_TOKEN" in answer.stderr


def test_a_client_with_the_token_is_answered(token, local, tmp_path):
    answer = asked(local["gcs"], tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    assert answer.returncode == 0, answer.stderr


def test_the_dashboard_answers_with_the_token_alone(local, token):
    address = f"http://{local['dashboard']}/api/jobs/"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(address)
    assert refusal.value.code == 401
    headers = {"Authorization": f"Bearer {token}"}
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        assert answer.status == 200


@pytest.mark.slow
def test_a_hostile_environment_is_put_up_with_and_a_kill_leaves_what_the_next_removes(tmp_path):
    """A long temporary folder, no home, a proxy, a hook, a blank address and few open files.

    Ray's agents outlive a killed head for as long as they ask for it: 60 s, if nothing is set.
    """
    long = tmp_path / ("x" * 100)
    long.mkdir()
    (tmp_path / "home").touch()
    own = environment(
        tmp_path / "home",
        TMPDIR=str(long),
        RAY_ADDRESS=" ",
        RAY_RUNTIME_ENV_HOOK="nobody.knows.it",
        http_proxy="http://127.0.0.1:9",
        RAY_gcs_rpc_server_reconnect_timeout_s="10",
    )
    with subprocess.Popen(
        [sys.executable, "-c", HOSTILE],
        cwd=ROOT,
        env=own,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        ),
    ) as driver:
        said = json.loads(driver.stdout.readline())
        started = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
    folder = Path(said["folder"])
    assert folder.name.startswith(machine.FOLDER_PREFIX)
    assert said["open_files"] > 256
    assert folder.stat().st_mode & 0o077 == 0
    _, alive = psutil.wait_procs(started, timeout=240)
    assert not alive
    with scratch.folder(folder.parent, machine.FOLDER_PREFIX):
        assert not folder.exists()
