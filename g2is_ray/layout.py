"""Where things lie in a workspace: the names of stages that belong to a target or a graph.

A target T has the example sets `targets/T/val` and `targets/T/test`, the gradients
`targets/T/gradients`, and the variants `T` (its selection) and `T@NAME` (what that is
compared with). A variant has `selections/VARIANT` and `tuned/VARIANT`; all scores of the
target are in `evaluations/T`.
"""

from __future__ import annotations

import re

from g2is_ray.workspace import Workspace

POOL, WARMUP, GRADIENTS = "pool", "warmup", "gradients"
BASE = "base"  # name of the untuned model's scores


def graph_stage(center: bool) -> str:
    """Folder of the graph over centered or over plain gradients."""
    return "graph/centered" if center else "graph/uncentered"


def targets_in(workspace: Workspace) -> list[str]:
    """Names of the targets that were read into the workspace, sorted."""
    matches = (re.fullmatch(r"targets/([^/]+)/val", stage) for stage in workspace.stages())
    return sorted(match[1] for match in matches if match)


def variants_in(workspace: Workspace, target: str) -> list[str]:
    """Variants of a target that were selected, the target's own selection first.

    If some were made anew since the pool grew, those that were not are left out: they cannot
    be compared.
    """
    found = (stage.removeprefix("selections/") for stage in workspace.stages())
    own = [name for name in found if name == target or name.startswith(f"{target}@")]
    # A random draw is as old as the selection that it is compared with.
    current = [n for n in own if set(workspace.outgrown(f"selections/{n}")) <= {POOL}]
    return sorted(current or own, key=lambda name: (name != target, name))


def score_name(target: str, variant: str) -> str:
    """Name of a tuned model's scores: selection, random, paper, …"""
    return "selection" if variant == target else variant.removeprefix(f"{target}@")
