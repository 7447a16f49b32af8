"""Ray's private interfaces are there; tests on a real Ray show that they do what they should."""

import os

from ray._private import ray_constants, utils

from actors import ray_internals


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
