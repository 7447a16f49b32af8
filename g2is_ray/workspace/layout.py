"""Where things lie in a workspace: the names of stages that belong to a target or a graph.

A target T has the example sets `targets/T/val` and `targets/T/test`, the features
`targets/T/gradients` and `targets/T/embeddings`, and the variants `T` (its selection) and
`T@NAME` (what that is compared with). A selection for several targets together is the variant
`joint`, with `joint@NAME` beside it. A variant has `selections/VARIANT` and `tuned/VARIANT`; all
scores of the target are in `evaluations/T`.

A comparison has a folder `comparisons/TOKENS` for its budget in supervised tokens, and in it, of
each target, `T/selections/METHOD` and `T/trials`. Its numbers and its page lie beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

from g2is_ray.config import Features
from g2is_ray.workspace.records import Record

if TYPE_CHECKING:
    from g2is_ray.workspace.workspace import Workspace

POOL, WARMUP, GRADIENTS = "pool", "warmup", "gradients"
OVERLAP = "overlap"  # of pool, targets and tests
BASE = "base"  # name of the untuned model's scores
JOINT = "joint"  # the selection for several targets together
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of a target or a method, and of a folder

GRAPH_KINDS: list[tuple[bool, Features]] = [
    (center, features) for features in get_args(Features) for center in (True, False)
]
"""Whether centered, and of which features."""


def graph_stage(center: bool, features: Features = "gradients") -> str:
    """Folder of the graph over gradients or embeddings, centered or as they are."""
    prefix = "" if features == "gradients" else f"{features}-"
    return f"graph/{prefix}centered" if center else f"graph/{prefix}uncentered"


def target_stage(target: str, kind: Literal["val", "test", "gradients", "embeddings"]) -> str:
    """Folder of a target's rows or features: `targets/law/val`."""
    return f"targets/{target}/{kind}"


def selection_stage(variant: str) -> str:
    """Folder of the rows selected for a variant: `selections/law`, `selections/law@random`."""
    return f"selections/{variant}"


def tuned_stage(variant: str) -> str:
    """Folder of the adapter tuned on a variant's selection."""
    return f"tuned/{variant}"


def evaluation_stage(target: str) -> str:
    """Folder of all scores measured on a target's test rows."""
    return f"evaluations/{target}"


def command_of(stage: str) -> str:
    """The command that makes a stage, as it is written after `g2is`.

    >>> command_of("targets/law/gradients"), command_of("graph/embeddings-uncentered")
    ('gradients', 'graph --features embeddings --no-center')
    """
    folder, _, name = stage.partition("/")
    if folder == "graph":
        features = " --features embeddings" if name.startswith("embeddings-") else ""
        return f"graph{features}{' --no-center' if name.endswith('uncentered') else ''}"
    if folder == "targets":
        kind = name.rpartition("/")[2]
        return "ingest" if kind in ("val", "test") else kind
    return _COMMANDS.get(folder, "run")


_COMMANDS = {
    "pool": "ingest",
    "overlap": "ingest",
    "warmup": "warmup",
    "gradients": "gradients",
    "embeddings": "embeddings",
    "selections": "select",
    "tuned": "tune",
    "evaluations": "evaluate",
    "comparisons": "compare",
}


def comparison_stage(tokens: int, target: str) -> str:
    """Folder of what is compared for a target under a budget in supervised tokens."""
    return f"comparisons/{tokens}/{target}"


def comparison_file(tokens: int, kind: str) -> str:
    """File of what a comparison under a budget in supervised tokens found: json or html."""
    return f"comparisons/{tokens}/comparison.{kind}"


def comparisons_in(workspace: Workspace) -> list[int]:
    """Budgets, in supervised tokens, of the comparisons that have a page, ascending."""
    budgets = (int(name) for name in workspace.storage.names("comparisons") if name.isdigit())
    return sorted(
        tokens for tokens in budgets if workspace.storage.exists(comparison_file(tokens, "html"))
    )


_VARIANT = f"{NAME.pattern}(@{NAME.pattern})?"
STAGE = re.compile(
    "pool|warmup|gradients|embeddings|graph/(embeddings-)?(un)?centered"
    f"|targets/{NAME.pattern}/(val|test|gradients|embeddings)"
    f"|(selections|tuned)/{_VARIANT}|evaluations/{NAME.pattern}"
    f"|comparisons/[0-9]+/{NAME.pattern}/(trials|selections/{NAME.pattern})"
)
"""Name, and folder, of any stage."""


def targets_in(workspace: Workspace) -> list[str]:
    """Names of the targets that were read into the workspace, sorted."""
    matches = (re.fullmatch(r"targets/([^/]+)/val", stage) for stage in workspace.stages())
    return sorted(match[1] for match in matches if match)


def variants_in(workspace: Workspace, target: str) -> list[str]:
    """Variants that were selected for a target, each main selection before its baselines.

    The target's selection comes first, then the joint selection if the target is part of it. If
    some variants were recomputed after the pool grew, the others are left out, because they cannot
    be compared with those.
    """
    stages = workspace.stages()
    joint = stages.get(f"selections/{JOINT}", {}).get("settings", {})
    together = joint.get("target_weight")
    has_joint = target != JOINT and isinstance(together, dict) and target in together
    bases = [target] + [JOINT] * has_joint
    names = [stage.removeprefix("selections/") for stage in stages]
    own = [
        name
        for base in bases
        for name in sorted(n for n in names if n == base or n.startswith(f"{base}@"))
    ]
    return [name for name in own if not _is_outgrown(workspace, name)] or own


def _is_outgrown(workspace: Workspace, variant: str) -> bool:
    """Whether the pool has grown since the variant, or what it is compared with, was selected."""
    main = variant.partition("@")[0]
    inputs = {
        name for v in (main, variant) for name in workspace.stage(selection_stage(v)).outgrown()
    }
    return not inputs <= {POOL}  # a random draw is as old as the selection beside it


def model_name(stages: Mapping[str, Record]) -> str:
    """What the pool's model was called when the pool was read."""
    return str(stages.get(POOL, {}).get("arguments", {}).get("model", ""))


def score_name(target: str, variant: str) -> str:
    """Name of a tuned model's scores: selection, random, paper, …; joint, joint@random, …"""
    return "selection" if variant == target else variant.removeprefix(f"{target}@")
