"""Write the report of everything that the workspace holds."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter

from g2is_ray.data.examples import ExampleSet
from g2is_ray.errors import WorkspaceError
from g2is_ray.workspace.layout import comparison_file, comparisons_in, targets_in, variants_in
from g2is_ray.workspace.workspace import Workspace
from jobs.session import Session

log = logging.getLogger(__name__)

_STATE = "report.json"


def report(session: Session) -> None:
    """Write `report.html` for all targets, and `selections/T/report.html` for each selection."""
    workspace = session.workspace
    mains = {name: variants_in(workspace, name)[:1] for name in targets_in(workspace)}
    names = [
        name
        for name, main in mains.items()
        if main and workspace.storage.exists(f"selections/{main[0]}/receipt.json")
    ]
    if not names:
        workspace.stage(f"selections/{session.targets()[0]}").require()
    shown = {
        stage: hashlib.sha256(workspace.storage.read_bytes(f"{stage}/receipt.json")).hexdigest()
        for stage in workspace.stages()
        if workspace.storage.exists(f"{stage}/receipt.json")
    }
    comparisons = comparisons_in(workspace)
    shown |= {comparison_file(tokens, "html"): "linked" for tokens in comparisons}
    where = workspace.storage.location("report.html")
    if _is_shown(workspace, shown):
        log.info("report: already done: %s", where)
        return
    from g2is_ray.report.collect import run_view, target_view
    from g2is_ray.report.pool_map import pool_map
    from g2is_ray.report.run_page import render
    from jobs.graph import graph_settings

    groups = [row["group"] for row in ExampleSet(workspace, "pool").read_all(["group"])]
    run = run_view(workspace, Counter(groups))
    targets = [target_view(workspace, name, groups) for name in names]
    points = pool_map(workspace, targets, groups, graph_settings(session))
    for main in dict.fromkeys(mains[name][0] for name in names):
        own = [target for target in targets if mains[target.name] == [main]]
        page = render(run, own, points).encode()
        workspace.storage.write_bytes(f"selections/{main}/report.html", page)
    run = dataclasses.replace(run, comparisons=comparisons)  # whose links are relative
    workspace.storage.write_bytes("report.html", render(run, targets, points).encode())
    workspace.storage.write_json(_STATE, shown)
    log.info("report: %s", where)


def _is_shown(workspace: Workspace, receipts: dict[str, str]) -> bool:
    try:
        return (
            workspace.storage.exists("report.html")
            and workspace.storage.read_json(_STATE) == receipts
        )
    except WorkspaceError:  # there is no report yet, or its state is damaged
        return False
