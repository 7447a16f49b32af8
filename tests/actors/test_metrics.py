"""Ray exports what a pool does, and the dashboard asks for what is exported."""

import json
import re
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import ray.cloudpickle

from actors.connection.cluster import Share, connected
from actors.pool.metrics import pool_metrics
from actors.pool.pool import WorkerPool

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json"
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


class Worker:
    """Stands for a gradient worker; one of its parts fails once."""

    failed = False

    def __init__(self, order):
        pass

    def process(self, item):
        if item == 2 and not self.failed:
            self.failed = True
            raise RuntimeError("not yet")
        return {"rows": 10, "tokens": 500}


@pytest.fixture(scope="module")
def exported(ray_address):
    """What Prometheus would read after a pool has done three parts of a stage `measured`."""
    with connected(ray_address):
        share = Share(workers=1, num_cpus=1, num_gpus=0)
        metrics = pool_metrics()
        with WorkerPool(Worker, None, share, on_event=metrics.on_event) as pool:
            pool.run([1, 2, 3], "measured")
        port = ray.nodes()[0]["MetricsExportPort"]
        for _ in range(120):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                lines = [line for line in answer.read().decode().splitlines() if "g2is_" in line]
            if any('stage="measured"' in line for line in lines):
                return [line for line in lines if not line.startswith("#")]
            time.sleep(0.5)
    raise AssertionError("nothing was exported in a minute")


def value(exported, name, **tags):
    wanted = [f'{tag}="{text}"' for tag, text in tags.items()]
    found = [one for one in exported if re.match(rf"{name}\W", one)]
    (line,) = [one for one in found if all(tag in one for tag in wanted)]
    return float(line.rsplit(" ", 1)[1])


@pytest.mark.ray
@pytest.mark.parametrize(
    ("name", "count"),
    [("parts_done", 3), ("examples_done", 30), ("tokens_done", 1500), ("retries", 1)],
)
def test_parts_examples_tokens_and_retries_are_counted_by_stage(name, count, exported):
    assert value(exported, f"ray_g2is_{name}_total", stage="measured") == count


@pytest.mark.ray
def test_no_worker_is_shown_after_the_stage(exported):
    assert value(exported, "ray_g2is_workers", stage="measured", state="ready") == 0


@pytest.mark.ray
def test_the_dashboard_asks_for_metrics_that_are_exported(exported):
    text = DASHBOARD.read_text()
    assert json.loads(text)["panels"]
    asked = set(re.findall(r"ray_g2is_\w+", text))
    named = {re.match(r"\w+", line)[0] for line in exported}
    never_counted = {"ray_g2is_workers_lost_total"}  # where no worker was lost
    assert asked - never_counted <= named <= asked
