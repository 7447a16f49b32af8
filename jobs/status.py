"""Show the stages of a workspace, and how many parts of each are done."""

from __future__ import annotations

from g2is_ray.workspace.layout import OVERLAP, WARMUP, targets_in, variants_in
from g2is_ray.workspace.workspace import STAGE_RECEIPT, Workspace
from jobs.session import Session


def status(session: Session) -> None:
    """Print a line per stage, in the order of work."""
    workspace = session.workspace
    lines = [_line(workspace, stage) for stage in _in_order(workspace)]
    width = max(len(line[0]) for line in lines)
    print(f"{'stage':{width}}  parts done  state")
    for stage, parts, state in lines:
        print(f"{stage:{width}}  {parts:>10}  {state}")


def _in_order(workspace: Workspace) -> list[str]:
    begun = list(workspace.stages())
    targets = targets_in(workspace)
    stages = ["pool", *(s for s in begun if s.endswith(("/val", "/test")) or s == OVERLAP)]
    # A selection that is begun has all that it reads; what is not there by then is not to do.
    selected = any(stage.startswith("selections/") for stage in begun)
    expected = ["warmup", "gradients", *(f"targets/{name}/gradients" for name in targets)]
    stages += [stage for stage in expected if stage in begun or not selected]
    stages += [s for s in begun if s.endswith("embeddings")]
    graphs = [s for s in begun if s.startswith("graph/")]
    stages += graphs or ([] if selected else ["graph"])
    variants = dict.fromkeys(v for name in targets for v in variants_in(workspace, name) or [name])
    for folder in ("selections", "tuned"):
        stages += [f"{folder}/{variant}" for variant in variants]
    stages += [f"evaluations/{name}" for name in targets]
    return stages + [s for s in begun if s.endswith("/trials")]


def _line(workspace: Workspace, stage: str) -> tuple[str, str, str]:
    names = workspace.storage.names(stage)
    pieces = "part-" if not stage.endswith("/trials") else ""
    receipts = [n for n in names if n.endswith(".json") and n.startswith(pieces)]
    if f"{STAGE_RECEIPT}.json" in names:
        receipts = [name for name in receipts if name != f"{STAGE_RECEIPT}.json"]
        receipt = workspace.stage(stage).receipt()
        total = receipt.get("parts", len(receipts) or 1)
        rows = f", {receipt['rows']} rows" if "rows" in receipt else ""
        seconds = receipt["seconds"]
        # The warm-up stays what it is when the pool grows.
        grown = workspace.stage(stage).outgrown() if stage != WARMUP else []
        behind = f", before {' and '.join(grown)} grew" if grown else ""
        return stage, f"{len(receipts) or 1}/{total}", f"done{rows}, {seconds:.1f} s{behind}"
    state = "begun" if names else "to do"
    return stage, f"{len(receipts)}/{_total(workspace, stage)}", state


def _total(workspace: Workspace, stage: str) -> str:
    """Parts of an unfinished stage, if they can be known yet."""
    if stage in ("gradients", "embeddings") or stage.startswith("graph"):
        source = "pool"
    elif stage.endswith(("/gradients", "/embeddings")):
        source = stage.rpartition("/")[0] + "/val"
    else:
        known = stage.startswith(("selections/", "tuned/", "evaluations/", "warmup"))
        return "1" if known else "?"
    if not workspace.storage.exists(f"{source}/{STAGE_RECEIPT}.json"):
        return "?"
    return str(workspace.stage(source).receipt()["parts"])
