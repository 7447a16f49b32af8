"""`memory_bytes` limits the memory of a graph worker, for any number of rows."""

import os
import subprocess
import sys

import numpy as np
import pytest

from g2is_ray.features.store import feature_files
from g2is_ray.workspace.workspace import Workspace

BUDGET = 2**27
PART_ROWS, DIMENSIONS = 64, 32768  # few and long rows, so that products take seconds

BUILD = """
import sys
from itertools import chain
from g2is_ray.config import GraphSettings
from g2is_ray.features.store import FeatureSet
from g2is_ray.graph.builder import GraphBuilder
from g2is_ray.graph.plan import comparison, make_plan, preparation, write_plan
from g2is_ray.graph.search import require_faiss
from g2is_ray.workspace.workspace import Workspace

def resident():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))

require_faiss()
idle = resident()
workspace, settings = Workspace(sys.argv[1]), GraphSettings(neighbors=8, graph="exact")
gradients = FeatureSet(workspace, "gradients", center=True)
plan = make_plan(gradients, settings, int(sys.argv[2]), "cpu")
write_plan(workspace, "graph/centered", plan, gradients)
builder = GraphBuilder(workspace, "graph/centered", settings)
for tasks in chain(preparation(plan, gradients.parts), comparison(plan, gradients.parts)):
    for task in tasks:
        builder.do(task)
print(len(plan.groups), resident() - idle)
"""


def groups_and_bytes(folder, rows):
    """Build the exact graph of `rows` rows in a new process; return groups and bytes."""
    workspace = Workspace(str(folder))
    rng = np.random.default_rng(0)
    for part in range(rows // PART_ROWS):
        x = rng.standard_normal((PART_ROWS, DIMENSIONS), dtype=np.float32)
        workspace.stage("gradients").commit(f"part-{part:05d}", feature_files(part, x), {})
    facts = {"rows": rows, "parts": rows // PART_ROWS, "invalid": 0}
    workspace.stage("gradients").conclude(facts)
    command = [sys.executable, "-c", BUILD, str(folder), str(BUDGET)]
    # By default, malloc keeps freed arrays of a few megabytes; those of real parts are larger.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "4000000"}
    out = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout
    return tuple(map(int, out.split()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_four_times_the_rows_take_no_more_memory_than_the_budget(tmp_path):
    few_groups, few = groups_and_bytes(tmp_path / "few", 512)
    many_groups, many = groups_and_bytes(tmp_path / "many", 2048)
    assert (few_groups, many_groups) == (1, 4)
    assert few < BUDGET and many < BUDGET  # 2,048 rows as float32 are 2 BUDGET
