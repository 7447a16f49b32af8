"""Private interfaces of Ray do what `ray_internals` needs; no other file uses any."""

import inspect
import os
import platform
import re
import sys
import threading
import time
from pathlib import Path

import pytest
import ray.cloudpickle
from ray._private import ray_constants, utils
from ray.exceptions import RayActorError

from actors import ray_internals
from actors.connection.cluster import connected

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


@pytest.fixture(scope="module")
def local_ray():
    with connected("local"):
        yield


@ray.remote(num_cpus=0)
class Speaker:
    """Prints lines, or fails to start."""

    def __init__(self, fails=False):
        if fails:
            raise RuntimeError("never")

    def say(self, line):
        print(line, flush=True)


def test_what_is_replaced_for_a_while_is_there_and_comes_back():
    for module, name, manager in (
        (ray_constants, "ENABLE_RAY_CLUSTER", ray_internals.on_loopback),
        (ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", ray_internals.without_uv_run),
        (utils, "set_sigterm_handler", ray_internals.signal_handlers_kept),
    ):
        before = getattr(module, name)
        with manager():
            assert getattr(module, name) is not before
        assert getattr(module, name) is before


def test_the_handler_that_is_left_out_of_a_training_is_rays():
    from ray.train.torch import TorchTrainer

    assert callable(TorchTrainer._register_sigint_handler)


def test_the_method_that_gets_a_time_limit_is_rays():
    from ray.job_submission import JobSubmissionClient

    assert callable(JobSubmissionClient._do_request)


def test_ray_reads_its_token_again(monkeypatch, tmp_path):
    from ray._raylet import AuthenticationTokenLoader

    monkeypatch.setenv("HOME", str(tmp_path))
    for value, there in (("", False), ("a" * 64, True)):
        monkeypatch.setenv("RAY_AUTH_TOKEN", value)
        ray_internals.read_authentication_again()
        assert AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True) == there
    monkeypatch.undo()
    ray_internals.read_authentication_again()


def test_a_cluster_that_runs_on_this_machine_is_found_by_what_it_wrote(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert ray_internals.detected_address() == "10.0.0.1:6379"


def test_a_loopback_address_is_this_machines_own_to_ray():
    assert ray_internals.as_ray_reaches("10.0.0.1:6379") == "10.0.0.1:6379"
    assert ray_internals.as_ray_reaches("localhost:6379").endswith(":6379")
    assert "RAY_ADDRESS" not in os.environ


# ---- what an upgrade of Ray may remove -----------------------------------------


@pytest.mark.ray
def test_a_worker_runs_a_function_that_is_no_method_of_its(local_ray):
    assert ray.get(ray_internals.call_in_actor(Speaker.remote(), lambda one, x: x + 1, 2)) == 3


@pytest.mark.ray
def test_an_actor_whose_constructor_raised_is_told_from_one_that_died(local_ray):
    speaker = Speaker.remote()
    ray.get(speaker.say.remote("started"))
    ray.kill(speaker)
    for actor, failed in ((Speaker.remote(fails=True), True), (speaker, False)):
        with pytest.raises(RayActorError) as died:
            ray.get(actor.say.remote("x"))
        assert ray_internals.failed_in_constructor(died.value) == failed


@pytest.mark.ray
def test_lines_that_workers_print_are_taken(local_ray):
    lines, came = [], threading.Event()

    def take(line):
        lines.append(line)
        if "a line of a worker" in line:
            came.set()

    with ray_internals.worker_output_to(take):
        ray.get(Speaker.remote().say.remote("a line of a worker"))
        assert came.wait(30), lines
    assert lines[-1].startswith("(Speaker pid=")


@pytest.mark.ray
def test_the_autoscalers_reports_are_read(local_ray):
    """This Ray has no autoscaler v2, but the fields exist."""
    status = ray_internals.cluster_status()
    state, resources = status.autoscaling_state, status.cluster_resource_state
    assert not state.autoscaler_state_version
    for field in (
        resources.pending_resource_requests,
        state.infeasible_resource_requests,
        state.pending_instances,
        state.failed_instance_requests,
    ):
        assert len(field) == 0
    assert ray_internals.has_autoscaler_v2() in (True, False)
    for _ in range(300):  # v1 reports some seconds after the start
        if report := ray_internals.autoscaler_v1_report():
            break
        time.sleep(0.1)
    assert "active_nodes" in report


@pytest.mark.ray
def test_rays_processes_find_the_ray_that_was_started(local_ray, tmp_path):
    ray_internals.note_address(str(tmp_path))
    (file,) = tmp_path.iterdir()
    assert file.name == "ray_current_cluster"
    assert file.read_text() == ray.get_runtime_context().gcs_address


@pytest.mark.ray
def test_a_cluster_tells_its_versions(local_ray):
    versions = ray_internals.cluster_versions(ray.get_runtime_context().gcs_address, 10.0)
    assert versions["ray_version"] == ray.__version__
    assert versions["python_version"] == platform.python_version()


def test_the_token_of_this_machine_is_used_where_none_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    ray_internals.use_token_if_there()
    assert "RAY_AUTH_MODE" not in os.environ


def test_rays_objects_may_lie_in_a_folder(tmp_path):
    (option,) = ray_internals.objects_in_files(tmp_path)
    assert option in inspect.getsource(ray.init)


def test_the_record_of_a_trainings_checkpoints_is_ray_trains():
    from ray.train.v2._internal.execution.checkpoint import checkpoint_manager

    assert "checkpoint_dir_name" in inspect.getsource(checkpoint_manager)
    record = '{"a": [{"checkpoint_dir_name": "checkpoint_1"}]}'
    assert ray_internals.recorded_checkpoints(record) == ["checkpoint_1"]


def test_the_file_of_that_record_is_ray_trains():
    from ray.train.v2._internal import constants

    assert constants.CHECKPOINT_MANAGER_SNAPSHOT_FILENAME == ray_internals.CHECKPOINT_RECORD


# ---- and no other file ----------------------------------------------------------

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(
    r"\bray(\.\w+)*\._[a-z]"  # ray._private, ray.train._internal, ray.autoscaler._private
    r"|\bray\.(core|dashboard|autoscaler|train\.v2)\b"
    r"|\b(_raylet|GcsClient|global_worker|__ray_\w+__|_plasma_directory|_system_config)\b"
)


@pytest.mark.parametrize(
    "line",
    [
        "from ray._private import utils",
        "from ray._raylet import GcsClient",
        "import ray.core.generated.gcs_pb2",
        "from ray.train._internal.session import x",
        "actor.__ray_call__.remote(f)",
        'ray.init(_system_config={"a": 1})',
    ],
)
def test_private_interfaces_are_recognized(line):
    assert PRIVATE.search(line)
    assert not PRIVATE.search("import ray.train; ray.__version__; ray.util.get_node_ip_address()")


def test_only_one_file_uses_private_interfaces_of_ray():
    files = [ROOT / "g2is.py"]
    files += [
        file for floor in ("g2is_ray", "actors", "jobs") for file in (ROOT / floor).rglob("*.py")
    ]
    users = {file.name for file in files if PRIVATE.search(file.read_text(encoding="utf-8"))}
    assert users == {"ray_internals.py"}
