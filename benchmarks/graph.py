"""Time, memory and recall of the kNN graph, beside exact search and FAISS's own IVF index.

    python benchmarks/graph.py --rows 100000 --dimensions 1024
    python benchmarks/graph.py --workspace runs/first --graph ivf

Without --workspace, rows are synthetic: a direction common to all, topics, subtopics and
noise, unit length; they are written as a workspace's float16 parts and read from there. The
graph is built by one worker in one process, as `GraphWorker` does it. The others get the
rows in memory as float32, which is not counted: exact search is torch's matrix product and
topk in blocks of rows, and FAISS's IVF index has as many lists as ours and is searched with
more and more probes until its recall on the same sample is at least ours. Each runs in a
process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import torch
from workload import product_rate

from g2is_ray.config import GraphSettings
from g2is_ray.features.store import FeatureSet, feature_files
from g2is_ray.graph.builder import GraphBuilder
from g2is_ray.graph.plan import comparison, make_plan, preparation, read_plan, write_plan
from g2is_ray.graph.recall import measure_recall, sample_neighbors
from g2is_ray.graph.search import require_faiss
from g2is_ray.workspace.workspace import Workspace, part_name

PART_ROWS = 4096
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.float16 if DEVICE.type == "cuda" else torch.float32  # what ours multiplies


def write_rows(workspace: Workspace, rows: int, dimensions: int) -> None:
    """Synthetic gradients, part by part, from one seed."""
    rng = np.random.default_rng(0)
    topics = max(8, rows // 2000)
    directions = {
        "common": rng.standard_normal((1, dimensions), dtype=np.float32),
        "topic": rng.standard_normal((topics, dimensions), dtype=np.float32),
        "subtopic": rng.standard_normal((topics * 20, dimensions), dtype=np.float32),
    }
    parts = range(-(-rows // PART_ROWS))
    for part in parts:
        count = min(PART_ROWS, rows - part * PART_ROWS)
        sub = rng.integers(0, topics * 20, size=count)
        x = rng.standard_normal((count, dimensions), dtype=np.float32)
        x += 0.3 * directions["common"] + 0.6 * directions["topic"][sub // 20]
        x += 0.7 * directions["subtopic"][sub]
        workspace.stage("gradients").commit(
            part_name(part), feature_files(part, x), {"rows": count}
        )
    facts = {"rows": rows, "parts": len(parts), "invalid": 0}
    workspace.stage("gradients").commit("receipt", {}, facts)


def ours(url: str, given: argparse.Namespace) -> dict[str, Any]:
    workspace, stage = Workspace(url), f"graph/benchmark-{given.graph}"
    workspace.storage.remove(stage)
    settings = GraphSettings(
        neighbors=given.neighbors, center=given.center, graph=given.graph, recall=given.recall
    )
    gradients = FeatureSet(workspace, "gradients", center=given.center)
    plan = make_plan(gradients, settings, given.memory_bytes, DEVICE.type)
    write_plan(workspace, stage, plan, gradients)
    builder = GraphBuilder(workspace, stage, settings)
    times: Counter[str] = Counter()
    for tasks in chain(preparation(plan, gradients.parts), comparison(plan, gradients.parts)):
        for task in tasks:
            began = time.perf_counter()
            facts = builder.do(task)
            times[task.kind] += time.perf_counter() - began
            if task.kind == "tune":
                probe = facts["probe"]
    workspace.stage(stage).conclude({"parts": gradients.parts})
    return {
        "seconds": sum(times.values()),
        "phases": dict(times),
        "search": plan.search,
        "groups": len(plan.groups),
        "lists": plan.lists,
        "probe": probe if plan.search == "ivf" else 0,
        "flops": 2 * len(gradients) ** 2 * gradients.dimensions / times["pair"],
        "rate": product_rate(DEVICE, HALF),
        **measure_recall(workspace, stage, gradients),
    }


def _in_memory(url: str, given: argparse.Namespace) -> np.ndarray:
    return FeatureSet(Workspace(url), "gradients", center=given.center).read_all()


def exact(url: str, given: argparse.Namespace) -> dict[str, Any]:
    """torch's matrix product and topk; --exact-rows of the rows, scaled up."""
    x = torch.from_numpy(_in_memory(url, given)).to(DEVICE, HALF)
    count = min(len(x), given.exact_rows or len(x))
    began = time.perf_counter()
    for start in range(0, count, 1024):
        (x[start : min(count, start + 1024)] @ x.T).topk(given.neighbors + 1, dim=1)
    return _scaled(began, x, count)


def knn_gpu(url: str, given: argparse.Namespace) -> dict[str, Any]:
    """FAISS's exact search on a GPU, in bfloat16; --exact-rows of the rows, scaled up."""
    faiss = require_faiss()
    importlib.import_module("faiss.contrib.torch_utils")  # has FAISS take torch's tensors

    x = torch.from_numpy(_in_memory(url, given)).to(DEVICE, torch.bfloat16)
    count = min(len(x), given.exact_rows or len(x))
    resources = faiss.StandardGpuResources()
    began = time.perf_counter()
    faiss.knn_gpu(resources, x[:count], x, given.neighbors + 1, metric=faiss.METRIC_INNER_PRODUCT)
    return _scaled(began, x, count)


def _scaled(began: float, x: torch.Tensor, count: int) -> dict[str, Any]:
    """Seconds for all rows, and FLOP/s, if `count` of them took the time since `began`."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds * len(x) / count,
        "flops": 2 * count * len(x) * x.shape[1] / seconds,
    }


def faiss_ivf(url: str, given: argparse.Namespace) -> dict[str, Any]:
    """FAISS's IVF index over the same rows, training included; the least probe of 1, 2, 4, …"""
    faiss = require_faiss()
    workspace, stage = Workspace(url), f"graph/benchmark-{given.graph}"
    plan, parts = read_plan(workspace, stage), FeatureSet(workspace, "gradients").parts
    assert plan is not None and plan.sample is not None
    wanted, _ = sample_neighbors(workspace, stage, parts)
    x = _in_memory(url, given)
    began = time.perf_counter()
    index = faiss.index_factory(x.shape[1], f"IVF{plan.lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(x[np.random.default_rng(0).choice(len(x), min(len(x), 48 * plan.lists), False)])
    index.add(x)
    built = time.perf_counter() - began
    sample = np.array(plan.sample)
    probe, recall = 1, 0.0
    while recall < given.reached and probe < plan.lists:
        index.nprobe, probe = probe, 2 * probe
        _, found = index.search(x[sample], given.neighbors + 1)
        recall = float(np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)]))
    began = time.perf_counter()
    index.search(x, given.neighbors + 1)
    searched = time.perf_counter() - began
    return {"seconds": built + searched, "probe": index.nprobe, "recall": recall}


def _child(work: Callable[..., Any], url: str, given: argparse.Namespace, results: Any) -> None:
    found = work(url, given)
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    results.put(found)


def in_a_process(work: Callable[..., Any], url: str, given: argparse.Namespace) -> dict[str, Any]:
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    child = spawn.Process(target=_child, args=(work, url, given, results))
    child.start()
    found: dict[str, Any] = results.get()
    child.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workspace", help="take its gradients instead of synthetic ones")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=1024)
    parser.add_argument("--neighbors", type=int, default=32)
    parser.add_argument("--center", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--graph", default="ivf")
    parser.add_argument("--recall", type=float, default=0.98)
    parser.add_argument("--memory-bytes", type=int, default=2**32)
    parser.add_argument("--exact-rows", type=int, default=0, help="measure exact on so many rows")
    parser.add_argument(
        "--beside", nargs="*", choices=["exact", "faiss", "knn_gpu"], default=["exact", "faiss"]
    )
    parser.add_argument("--scratch", help="folder for synthetic rows; kept, and used again")
    given = parser.parse_args()
    if "knn_gpu" in given.beside and DEVICE.type != "cuda":
        parser.error("knn_gpu needs a GPU, and faiss-gpu")

    scratch = given.scratch or tempfile.mkdtemp(prefix="g2is-graph-")
    url = given.workspace or os.path.join(scratch, f"{given.rows}x{given.dimensions}")  # noqa: PTH118
    if not Workspace(url).storage.exists("gradients/receipt.json"):
        write_rows(Workspace(url), given.rows, given.dimensions)
    found = in_a_process(ours, url, given)
    given.reached = found["recall_low"]
    print(
        f"{found['search']}: {found['seconds']:.1f} s, recall {found['recall']:.4f} "
        f"({found['recall_low']:.4f} to {found['recall_high']:.4f}, {found['recall_rows']} rows), "
        f"probe {found['probe']} of {found['lists']} lists, {found['groups']} groups, "
        f"peak memory {found['peak']:.2f} GB"
    )
    print("  " + ", ".join(f"{name} {spent:.1f} s" for name, spent in found["phases"].items()))
    if found["search"] == "exact":
        print(
            f"  products at {found['flops'] / 1e9:.0f} GFLOP/s, "
            f"{found['flops'] / found['rate']:.0%} of a large product's {found['rate'] / 1e9:.0f}"
        )
    for name, work in {"exact": exact, "knn_gpu": knn_gpu}.items():
        if name in given.beside:
            other = in_a_process(work, url, given)
            print(
                f"{name}: {other['seconds']:.1f} s ({other['flops'] / 1e9:.0f} GFLOP/s); ours is "
                f"{other['seconds'] / found['seconds']:.2f} times as fast",
                flush=True,
            )
    if "faiss" in given.beside and found["search"] == "ivf":
        other = in_a_process(faiss_ivf, url, given)
        print(
            f"faiss: {other['seconds']:.1f} s, recall {other['recall']:.4f} at probe "
            f"{other['probe']}; ours is {other['seconds'] / found['seconds']:.2f} times as fast"
        )
    if not given.scratch and not given.workspace:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
