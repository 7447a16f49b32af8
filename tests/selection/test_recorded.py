"""Selections that an earlier version recorded stay what they are, and are never made again.

`recorded.json` holds, of the workspace that `make_workspace` makes, the commands that were given,
the records in `workspace.json` and the SHA-256 of each selection.jsonl. The version of 24 November
2026 wrote it; there a centered selection had the graph among its inputs for the graph's mean.
"""

import hashlib
import json
from pathlib import Path

import pytest
from selection_workspace import make_workspace

from g2is_ray.workspace.workspace import Workspace

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("recorded") / "ws")


def sha256(held: Workspace) -> dict[str, str]:
    return {
        stage: hashlib.sha256(held.storage.read_bytes(f"{stage}/selection.jsonl")).hexdigest()
        for stage in RECORDED["sha256"]
    }


def test_the_same_rows_are_selected_and_what_was_recorded_is_done(held, g2is):
    for command in RECORDED["commands"]:
        g2is("select", "--workspace", held.storage.location(""), *command)
    assert sha256(held) == RECORDED["sha256"]
    index = held.storage.read_json("workspace.json")
    for stage, record in RECORDED["stages"].items():
        now = index["stages"][stage]
        assert now["settings"] == record["settings"], stage
        assert now["arguments"] == record["arguments"], stage
        assert now["inputs"].items() <= record["inputs"].items(), stage
    index["stages"] |= RECORDED["stages"]
    held.storage.write_json("workspace.json", index)
    written = {
        stage: held.storage.read_bytes(f"{stage}/receipt.json") for stage in RECORDED["stages"]
    }
    for stage, receipt in written.items():  # so that one that is made again shows
        facts = json.loads(receipt) | {"seconds": 12345.0}
        held.storage.write_json(f"{stage}/receipt.json", facts)
    for command in RECORDED["commands"]:
        g2is("select", "--workspace", held.storage.location(""), *command)
    for stage, record in RECORDED["stages"].items():
        assert held.stage(stage).receipt()["seconds"] == 12345.0, stage
        assert held.stages()[stage] == record
