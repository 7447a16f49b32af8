"""cluster.yaml is what Ray accepts, and keeps our rules."""

from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[1] / "cluster.yaml"


@pytest.fixture
def config() -> dict:
    return yaml.safe_load(FILE.read_text())


def test_ray_accepts_it(config: dict) -> None:
    validate_config(prepare_config(config))


def test_image_is_of_the_installed_ray(config: dict) -> None:
    assert f":{version('ray')}-" in config["docker"]["image"]


def test_head_is_on_demand_and_gpu_workers_start_at_none(config: dict) -> None:
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert all(worker["min_workers"] == 0 for worker in types.values())


def test_dashboard_is_private_and_every_node_asks_for_the_token(config: dict) -> None:
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [line for line in starts if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]
