"""Compare pool, targets and tests, and say which rows are where they should not be."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from g2is_ray.contamination.stage import Overlap, overlaps, write_overlap
from g2is_ray.data.examples import ExampleSet
from g2is_ray.workspace.layout import POOL
from g2is_ray.workspace.workspace import Workspace

log = logging.getLogger(__name__)


def find_overlap(workspace: Workspace) -> None:
    """Write the stage `overlap` if it is not done, and warn of what it says."""
    write_overlap(workspace)
    for one in overlaps(workspace):
        rows, likes, _ = zip(*one.examples, strict=True)
        places = zip(
            _places(workspace, one.set, rows), _places(workspace, one.of, likes), strict=True
        )
        first = ", ".join(f"{place} is like {other}" for place, other in places)
        log.warning("overlap: %s (%s). %s", one.sentence(), first, _consequence(one))


def _places(workspace: Workspace, folder: str, rows: Sequence[int]) -> list[str]:
    held = ExampleSet(workspace, folder).take(rows, ["file", "line"])
    return [f"{row['file']}:{row['line']}" for row in held]


def _consequence(one: Overlap) -> str:
    if one.set == POOL and one.is_of_tests:
        rows = sum(one.rows.values())
        return f"These {rows} rows of the pool are not selected unless --allow-overlap is given"
    if one.set == POOL:
        return "Such rows of the pool may be selected; they add nothing to what the target has"
    if one.set == f"targets/{one.target}/val":
        return "The test is not independent of what rows are selected for: take other test rows"
    if one.is_of_tests and one.set.endswith("/val"):
        return f"What is selected for the other target is chosen to be like tests of {one.target}"
    return "These two do not measure different things"
