"""A workspace with everything that `g2is select` reads, made without Ray or a model."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from g2is_ray.contamination.stage import write_overlap
from g2is_ray.data.examples import SCHEMA
from g2is_ray.features.store import FeatureSet, feature_files
from g2is_ray.graph.search import knn_graph
from g2is_ray.workspace.layout import GRAPH_KINDS, graph_stage
from g2is_ray.workspace.storage import array_bytes
from g2is_ray.workspace.workspace import Workspace, part_name

PART_ROWS, PARTS, DIMENSIONS = 40, 6, 24
ROWS, TARGET_ROWS = PART_ROWS * PARTS, 12
TARGETS = ("code", "law", "math")


def clustered(rows: int, rng: np.random.Generator) -> np.ndarray:
    """Features [n, d] around eight centers and a common direction; the same centers always."""
    centers = np.random.default_rng(7).standard_normal((9, DIMENSIONS))
    own = centers[rng.integers(0, 8, rows)] + rng.standard_normal((rows, DIMENSIONS)) + centers[8]
    return own.astype(np.float32)


def graph_of(x: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Neighbors [n, k] of rows [n, d], and their similarities."""
    near = knn_graph(x, k)
    similar = np.where(near >= 0, np.einsum("nd,nkd->nk", x, x[near]), 0)
    return {"neighbors": near, "similarities": similar}


def conversation(rng: np.random.Generator) -> dict:
    words = " ".join(f"word{number}" for number in rng.integers(0, 50, 6))
    messages = [{"role": "user", "content": words}, {"role": "assistant", "content": "yes"}]
    tokens = int(rng.integers(1, 30))
    return {"messages": messages, "group": "words", "supervised_tokens": tokens}


def write_rows(held: Workspace, stage: str, part: int, rows: list[dict]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink)
    files = {f"{part_name(part)}.parquet": sink.getvalue().to_pybytes()}
    held.stage(stage).commit(part_name(part), files, {"rows": len(rows)})


def write_features(held: Workspace, stage: str, x: np.ndarray) -> None:
    held.stage(stage).begin({})
    parts = [x[first : first + PART_ROWS] for first in range(0, len(x), PART_ROWS)]
    for part, own in enumerate(parts):
        held.stage(stage).commit(part_name(part), feature_files(part, own), {"rows": len(own)})
    invalid = int((~x.any(axis=1)).sum())
    facts = {"rows": len(x), "parts": len(parts), "invalid": invalid, "seconds": 1.5}
    held.stage(stage).conclude(facts)


def make_workspace(folder: Path) -> Workspace:
    held, rng = Workspace(str(folder)), np.random.default_rng(0)
    x = clustered(ROWS, rng)
    x[[5, 100]] = 0
    model = {"model": "none"}
    held.stage("pool").begin(model, arguments=model)
    for part in range(PARTS):
        first = part * PART_ROWS
        rows = [
            {"id": f"id-{row}", "record": json.dumps({"row": row})} | conversation(rng)
            for row in range(first, first + PART_ROWS)
        ]
        write_rows(held, "pool", part, rows)
    read = {"part_rows": PART_ROWS, "rejected": 0, "truncated": 0, "seconds": 1.5}
    held.stage("pool").conclude({"rows": ROWS, "parts": PARTS, **read})
    write_features(held, "gradients", x)
    write_features(held, "embeddings", x[:, :8] + 1 * x.any(axis=1, keepdims=True))
    for target in TARGETS:
        val = f"targets/{target}/val"
        held.stage(val).begin({})
        tasks = [{"record": json.dumps({"subtask": row % 3})} for row in range(TARGET_ROWS)]
        write_rows(held, val, 0, [row | conversation(rng) for row in tasks])
        held.stage(val).conclude({"rows": TARGET_ROWS, "parts": 1, **read})
        own = clustered(TARGET_ROWS, rng)
        write_features(held, f"targets/{target}/gradients", own)
        write_features(held, f"targets/{target}/embeddings", own[:, :8] + 1)
    for center, features in GRAPH_KINDS:
        stage = graph_stage(center, features)
        known = {"neighbors": 6, "center": center, "features": features}
        held.stage(stage).begin({}, [features], arguments=known)
        graph = graph_of(FeatureSet(held, features, center=center).read_all(), 6)
        for kind, found in graph.items():
            for part, own in enumerate(np.split(found, PARTS)):
                held.storage.write_bytes(f"{stage}/{part_name(part)}.{kind}.npy", array_bytes(own))
        found = {"mean_similarity": 0.5, "recall_rows": 0, "seconds": 1.5}
        held.stage(stage).conclude({"rows": ROWS, "parts": PARTS, **found})
    write_overlap(held)
    return held


def files(held: Workspace, stage: str) -> dict[str, bytes]:
    return {name: held.storage.read_bytes(f"{stage}/{name}") for name in held.storage.names(stage)}


def selections(held: Workspace) -> dict[str, bytes]:
    """All files of all selections but the receipts, which hold seconds."""
    return {
        f"{variant}/{name}": data
        for variant in held.storage.names("selections")
        for name, data in files(held, f"selections/{variant}").items()
        if name != "receipt.json"
    }
