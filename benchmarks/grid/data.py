"""The grid's rows: one union of all pools, and each target's rows to select for and to test with.

The union begins with rows of other kinds than any target's, in a random order. Behind them are
each target's own rows, in a random order. A pool is a beginning of the former and a beginning of
one target's own, always the same number together, so features of a row are computed once.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.errors import InputError
from grid.design import LEVELS, OTHERS, TARGETS, Cell, Scale, TargetKind

Row = dict[str, Any]
STATED = re.compile(r"answer is:?\s*(.+?)\.?\s*$", re.IGNORECASE)
_BBH_TASKS = 27  # whose rows take turns in bbh's file


@dataclass(frozen=True, kw_only=True)
class Data:
    """All rows, as they are written for the library to read."""

    union: list[Row]
    own: dict[str, list[int]]  # of each target, its own rows' numbers in the union
    select: dict[str, list[Row]]  # of each target, the rows to select for
    test: dict[str, list[Row]]  # with `answer`
    general: list[Row]  # of the pool's kinds, but in no pool: what should not be forgotten
    unusable: int  # rows that were left out since max_tokens cuts all of their answer off

    def pool(self, cell: Cell, scale: Scale) -> list[int]:
        """Numbers of the pool's rows in the union."""
        own = self.own[cell.target][: scale.own_rows(cell.level)]
        return [*range(scale.pool_rows - len(own)), *own]


def draw(folder: Path, scale: Scale, encoder: ChatEncoder) -> Data:
    """Draw all rows, always the same ones, from the benchmark data in `folder`."""
    with gzip.open(folder / "pool.jsonl.gz", "rt") as lines:
        held = [json.loads(line) for line in lines]
    usable = _usable(held, encoder)
    claimed = {source for kind in TARGETS.values() for source in kind.sources}
    others = _shuffled((r for r in usable if r["source"] not in claimed and _kept(r)), "others")
    select, test, own = {}, {}, {}
    for name, kind in TARGETS.items():
        rest = _shuffled((r for r in usable if r["source"] in kind.sources), name)
        if _has_files(folder, kind):
            select[name], test[name] = _from_files(folder, name)
        else:
            cut = 64 + 200  # whatever the scale, so that a dry run draws the same rows
            select[name], test[name], rest = rest[:64], rest[64:cut], rest[cut:]
        select[name] = _usable(select[name], encoder)[: scale.target_rows]
        test[name] = [_answered(r) for r in _usable(test[name], encoder)[: scale.test_rows]]
        own[name] = rest[: scale.own_rows(max(LEVELS, key=lambda level: LEVELS[level]))]
    union, places = others[: scale.pool_rows], {name: [] for name in own}
    rare = scale.own_rows("rare")
    for first, last in ((0, rare), (rare, None)):  # what is needed first comes first
        for name, rows in own.items():
            places[name] += range(len(union), len(union) + len(rows[first:last]))
            union = union + rows[first:last]
    return Data(
        union=union,
        own=places,
        select=select,
        test=test,
        general=others[-scale.general_rows :],
        unusable=len(held) - len(usable),
    )


def _kept(row: Row) -> bool:
    return row["source"] not in OTHERS


def _has_files(folder: Path, kind: TargetKind) -> bool:
    return (folder / f"target-{kind.name}-test.jsonl").exists()


def _from_files(folder: Path, name: str) -> tuple[list[Row], list[Row]]:
    """Rows to select for, and to test with.

    Those of bbh are both from its test file, bare answers, with every task among both: its tasks
    take turns there, and every third round is to select for.
    """
    val, test = (
        [json.loads(line) for line in (folder / f"target-{name}-{kind}.jsonl").open()]
        for kind in ("val", "test")
    )
    if name != "bbh":
        return val, test
    rounds = [number // _BBH_TASKS % 3 for number in range(len(test))]
    pairs = list(zip(rounds, test, strict=True))
    return [row for turn, row in pairs if turn == 1], [row for turn, row in pairs if turn != 1]


def _usable(rows: Iterable[Row], encoder: ChatEncoder) -> list[Row]:
    found = []
    for row in rows:
        try:
            encoder.encode(row["messages"])
        except InputError:
            continue
        found.append(row)
    return found


def _shuffled(rows: Iterable[Row], name: str) -> list[Row]:
    held, seed = list(rows), zlib.crc32(name.encode())
    return [held[i] for i in np.random.default_rng(seed).permutation(len(held))]


def _answered(row: Row) -> Row:
    """The row with `answer`: the one it comes with, or what its reply states at its end."""
    if "answer" in row:
        return row
    stated = STATED.search(row["messages"][-1]["content"].splitlines()[-1])
    return row | {"answer": stated[1]} if stated else row


def closed_set(row: Row, task_rows: Sequence[Row]) -> list[str]:
    """All answers that the row's question admits of; none where they are not a closed set.

    Args:
        task_rows: rows of the same task; where they have two answers only, these are the set.
    """
    prompt, answer = row["messages"][0]["content"], row.get("answer", "")
    _, listed, options = prompt.partition("Options:\n")
    found: list[str] = []
    if listed:
        lines = options.splitlines()
        found = [match[0] for line in lines if (match := re.match(r"\([A-Z]\)", line))]
        if not found:
            items = [line.removeprefix("- ").strip() for line in lines if line.startswith("- ")]
            found = [re.sub(r"^(Sentence [AB]):.*", r"\1", item) for item in items]
    elif formats := re.search(r"Answer format: (\S+)$", prompt):
        found = formats[1].split("/")
    elif len(answers := sorted({r["answer"] for r in task_rows if "answer" in r})) == 2:
        found = answers
    return found if answer in found and STATED.search(_last_line(row)) else []


def with_answer(row: Row, answer: str) -> list[dict[str, str]]:
    """The messages with a reply of its last line alone, and with `answer` stated in that."""
    line = _last_line(row)
    stated = STATED.search(line)
    assert stated is not None  # or there would be no closed set
    reply = line[: stated.start(1)] + answer + line[stated.end(1) :]
    return [*row["messages"][:-1], {"role": "assistant", "content": reply}]


def _last_line(row: Row) -> str:
    return str(row["messages"][-1]["content"]).splitlines()[-1]
