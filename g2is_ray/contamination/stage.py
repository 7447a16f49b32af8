"""The stage `overlap`: rows of pool, targets and tests that match rows of targets and tests.

`overlap/part-k` holds the matches of a part of the pool, `overlap/matches.jsonl` the matches of all
sets, and the receipt their counts. The stage's record depends only on which pool rows match test
rows. Selections read only this, so they are outdated only if it changes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2is_ray.contamination.overlap import KINDS, Index, Match, Turn, without_templates
from g2is_ray.data.examples import ExampleSet
from g2is_ray.errors import WorkspaceError
from g2is_ray.workspace.layout import OVERLAP, POOL, targets_in
from g2is_ray.workspace.workspace import STAGE_RECEIPT, Workspace, part_name

log = logging.getLogger(__name__)

_RULES = 1  # version of the rules of matching
_BLOCK_ROWS = 1024  # pool rows compared at a time, which bounds memory
_EXAMPLES = 3
_MATCHES = f"{OVERLAP}/matches.jsonl"
_WAYS = {
    "row": "word for word",
    "prompt": "with another answer",
    "near": "inside of other words",
    "answer": "by the answer alone",
}


def write_overlap(workspace: Workspace) -> None:
    """Compare pool, targets and tests with all targets and tests; finished parts are skipped."""
    sets = _reference_sets(workspace)
    if not sets:
        return
    if not _is_current(workspace):
        _compare(workspace, sets, _compared(workspace, sets))
    leaked = np.flatnonzero(rows_like_tests(workspace)).tolist()
    digest = hashlib.sha256(json.dumps(leaked).encode()).hexdigest()
    workspace.stage(OVERLAP).extend({"test_rows_in_pool": len(leaked), "sha256": digest})


def _reference_sets(workspace: Workspace) -> list[str]:
    every = (f"targets/{name}/{kind}" for name in targets_in(workspace) for kind in ("val", "test"))
    return [name for name in every if workspace.storage.exists(f"{name}/{STAGE_RECEIPT}.json")]


def _compared(workspace: Workspace, sets: Sequence[str]) -> dict[str, Any]:
    stages = workspace.stages()
    return {"rules": _RULES} | {name: stages[name]["fingerprint"] for name in (POOL, *sets)}


def _is_current(workspace: Workspace) -> bool:
    receipt = workspace.stage(OVERLAP).verified()
    now = _compared(workspace, _reference_sets(workspace))
    return receipt is not None and receipt.get("compared") == now


def _compare(workspace: Workspace, sets: Sequence[str], compared: Mapping[str, Any]) -> None:
    began = time.monotonic()
    pool, held = ExampleSet(workspace, POOL), {name: ExampleSet(workspace, name) for name in sets}
    index = Index({name: _turns(own) for name, own in held.items()})
    found = {POOL: without_templates(_of_pool(workspace, pool, index, compared))}
    for name, own in held.items():
        found[name] = without_templates(index.matches(_turns(own), besides=name))
    lines = [{"set": name} | match._asdict() for name, own in found.items() for match in own]
    facts = {
        "compared": compared,
        "parts": pool.parts,
        "pairs": [pair for name, own in found.items() for pair in _pairs(name, own, index, held)],
        "seconds": round(time.monotonic() - began, 3),
    }
    files = {"matches.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}
    workspace.stage(OVERLAP).commit(STAGE_RECEIPT, files, facts)


def _turns(examples: ExampleSet) -> Iterator[list[Turn]]:
    for part in range(examples.parts):
        yield from examples.turns(part)


def _of_pool(
    workspace: Workspace, pool: ExampleSet, index: Index, compared: Mapping[str, Any]
) -> Iterator[Match]:
    """Matches of the pool, part by part; finished parts are read from the workspace."""
    references = {name: value for name, value in compared.items() if name != POOL}
    for part in range(pool.parts):
        name = part_name(part)
        of = references | {
            "part": workspace.stage(POOL).receipt(name).file(f"{name}.parquet")["sha256"]
        }
        done = workspace.stage(OVERLAP).verified(name)
        if done is None or done.get("compared") != of:
            matches = list(_of_part(pool, part, index))
            lines = "".join(json.dumps(match) + "\n" for match in matches)
            files = {f"{name}.jsonl": lines.encode()}
            workspace.stage(OVERLAP).commit(name, files, {"compared": of, "matches": len(matches)})
        lines_of = workspace.storage.read_bytes(f"{OVERLAP}/{name}.jsonl").splitlines()
        yield from (Match(*json.loads(line)) for line in lines_of)


def _of_part(pool: ExampleSet, part: int, index: Index) -> Iterator[Match]:
    turns, before = pool.turns(part), int(pool.first_rows[part])
    for first in range(0, len(turns), _BLOCK_ROWS):
        for match in index.matches(turns[first : first + _BLOCK_ROWS]):
            yield match._replace(row=before + first + match.row)


def _pairs(
    name: str, matches: Iterable[Match], index: Index, held: Mapping[str, ExampleSet]
) -> Iterator[dict[str, Any]]:
    """Counts of matching rows by kind, for a set and each reference set that it matches."""
    by_set: dict[str, list[Match]] = defaultdict(list)
    for match in matches:
        by_set[match.of].append(match)
    for of, own in by_set.items():
        rows: dict[int, str] = {}
        likes: dict[int, str] = {}
        for match in sorted(own, key=lambda match: KINDS.index(match.kind)):
            rows.setdefault(match.row, match.kind)
            for like, kind in index.alike(match).items():
                likes[like] = min(likes.get(like, kind), kind, key=KINDS.index)
        first = sorted(own, key=lambda match: (KINDS.index(match.kind), match.row))[:_EXAMPLES]
        yield {
            "set": name,
            "of": of,
            "rows": Counter(rows.values()),
            "rows_of": Counter(likes.values()),
            "total_of": held[of].rows,
            "examples": [[match.row, match.like, match.kind] for match in first],
        }


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Rows of a set that match rows of a reference set."""

    set: str
    of: str
    rows: Mapping[str, int]  # matching rows of `set`, by kind
    rows_of: Mapping[str, int]  # matching rows of `of`, by kind
    total_of: int  # all rows of `of`
    examples: Sequence[tuple[int, int, str]]  # row of `set`, row of `of`, kind

    @property
    def target(self) -> str:
        """The target that the rows of `of` belong to."""
        return self.of.split("/")[1]

    @property
    def is_of_tests(self) -> bool:
        return self.of.endswith("/test")

    def sentence(self) -> str:
        """A sentence with the number of overlapping rows by kind.

        >>> found = {"row": 2, "near": 1}
        >>> Overlap(
        ...     set="pool", of="targets/law/test", rows={}, rows_of=found, total_of=9, examples=[]
        ... ).sentence()
        '3 of the 9 test rows of law are in the pool: 2 word for word, 1 inside of other words'
        """
        ways = ", ".join(f"{self.rows_of[k]} {_WAYS[k]}" for k in KINDS if self.rows_of.get(k))
        count = sum(self.rows_of.values())
        return f"{count} of the {self.total_of} {_named(self.of)} are in {_place(self.set)}: {ways}"


def overlaps(workspace: Workspace) -> list[Overlap]:
    """Overlaps, those of tests first; each pair of targets or tests occurs once.

    Returns an empty list if the current sets were not compared yet.
    """
    if not _is_current(workspace):
        return []
    try:
        every = [
            Overlap(**pair)
            for pair in workspace.stage(OVERLAP).require_piece(STAGE_RECEIPT)["pairs"]
        ]
    except (KeyError, TypeError):
        raise workspace.storage.damaged(f"{OVERLAP}/{STAGE_RECEIPT}.json") from None
    known = [one for one in every if one.set == POOL or _is_first(one)]
    return sorted(known, key=lambda one: (not one.is_of_tests, one.set != POOL, one.of, one.set))


def notes(workspace: Workspace, target: str) -> list[str]:
    """Sentences on the overlap of a target's rows and tests, for its report."""
    if not _is_current(workspace):
        return ["Pool, target and test rows were not compared: g2is ingest does that."]
    own = (f"targets/{target}/val", f"targets/{target}/test")
    found = [one for one in overlaps(workspace) if one.of in own or one.set in own]
    if not any(one.is_of_tests and one.target == target for one in found):
        return ["No test row was found in the pool or among target rows.", *map(_said, found)]
    return [_said(one) for one in found]


def _said(one: Overlap) -> str:
    if one.set == POOL and one.is_of_tests:
        return f"{one.sentence()}; {sum(one.rows.values())} rows of the pool are like test rows."
    return f"{one.sentence()}."


def rows_like_tests_if_compared(workspace: Workspace) -> NDArray[np.bool_]:
    """`rows_like_tests`, or all False if the current sets were not compared yet; bool [n]."""
    if _is_current(workspace):
        return rows_like_tests(workspace)
    return np.zeros(workspace.stage(POOL).require()["rows"], dtype=bool)


def _is_first(one: Overlap) -> bool:
    """Whether an overlap of two targets or tests is the one to report, not its mirror image."""
    kinds = [name.rpartition("/")[2] for name in (one.set, one.of)]
    return kinds == ["val", "test"] or (kinds[0] == kinds[1] and one.set < one.of)


def _named(name: str) -> str:
    _, target, kind = name.split("/")
    return f"test rows of {target}" if kind == "test" else f"rows of the target {target}"


def _place(name: str) -> str:
    return "the pool" if name == POOL else f"the {_named(name)}"


def rows_like_tests(workspace: Workspace) -> NDArray[np.bool_]:
    """Mask, bool [n], of the pool rows that match a test row of any target.

    Raises:
        WorkspaceError: the current sets were not compared yet.
    """
    workspace.stage(OVERLAP).require()
    if not _is_current(workspace):
        raise WorkspaceError(
            f"{workspace.url} holds sets that were not compared for overlaps yet; run `g2is ingest "
            f"--workspace {workspace.url}` first"
        )
    alike = np.zeros(workspace.stage(POOL).require()["rows"], dtype=bool)
    try:
        for line in workspace.storage.read_bytes(_MATCHES).splitlines():
            match = json.loads(line)
            if match["set"] == POOL and match["of"].endswith("/test"):
                alike[match["row"]] = True
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise workspace.storage.damaged(_MATCHES) from None
    return alike
