"""What was measured, in a form to keep: no texts and no rows, only numbers.

`trials.jsonl` has a line per trial, `targets.json` what the trials of a target share, and
`design.json` model and sizes. Numbers of
single test rows are base64 of little-endian arrays. Trial files, which hold more, stay in the
workspace.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grid.design import TARGETS, TrialKey

Line = dict[str, Any]
_KEPT = (
    *("rows", "tokens", "amount", "steps", "own_rows", "pool_own_rows", "pool_rows"),
    *("pool_tokens", "sources", "commit"),
)


class Results:
    """The results folder, and the workspace that adds to it.

    Args:
        folder: of what is kept.
        workspace: of trials; it need not exist.
    """

    def __init__(self, folder: Path, workspace: Path) -> None:
        self.folder, self._workspace = folder, workspace
        self.lines: dict[str, Line] = {}  # by trial
        self.targets: dict[str, Any] = {}
        if (folder / "trials.jsonl").exists():
            lines = (folder / "trials.jsonl").read_text().splitlines()
            self.lines = {line["trial"]: line for line in map(json.loads, lines)}
            self.targets = json.loads((folder / "targets.json").read_text())

    def has(self, key: TrialKey) -> bool:
        """Whether the trial is done, on this machine or on an earlier one."""
        return str(key) in self.lines or (self._workspace / f"trials/{key}.npz").exists()

    def claim(self, design: Line) -> None:
        """Refuse to mix what was measured otherwise: see `design.json` in both folders."""
        for folder in (self._workspace, self.folder):
            file = folder / "design.json"
            if file.exists() and json.loads(file.read_text()) != design:
                raise SystemExit(f"{file} is of another design: use other folders")
        self._workspace.mkdir(parents=True, exist_ok=True)
        (self._workspace / "design.json").write_text(json.dumps(design) + "\n")

    def collect(self) -> None:
        """Add the workspace's trials, and write both files."""
        shared = {}
        for name in TARGETS:
            file = self._workspace / f"targets-of-trials/{name}.npz"
            base = self._workspace / f"trials/{name}-base.npz"
            if file.exists() and base.exists():
                shared[name] = _read(file)
                self.targets[name] = _target(*shared[name], *_read(base))
        for file in sorted((self._workspace / "trials").glob("*/*/*/*.npz")):
            trial = file.relative_to(self._workspace / "trials").with_suffix("").as_posix()
            facts, arrays = _read(file)
            own = {name: facts[name] for name in _KEPT}
            own |= _scores(shared[trial.partition("/")[0]][1], arrays)
            self.lines[trial] = {"trial": trial, **own, "cpu_seconds": facts["cpu_seconds"]}
        self.folder.mkdir(parents=True, exist_ok=True)
        design = self._workspace / "design.json"
        if design.exists():
            (self.folder / "design.json").write_text(design.read_text())
        text = "".join(json.dumps(self.lines[name]) + "\n" for name in sorted(self.lines))
        (self.folder / "trials.jsonl").write_text(text)
        (self.folder / "targets.json").write_text(json.dumps(self.targets, indent=1) + "\n")


def _read(file: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    with np.load(file) as held:
        arrays = dict(held)
    return json.loads(arrays.pop("facts").tobytes()), arrays


def _target(
    facts: Mapping[str, Any],
    shared: Mapping[str, NDArray[Any]],
    base_facts: Mapping[str, Any],
    base: Mapping[str, NDArray[Any]],
) -> Line:
    counts = shared["option_counts"]
    return {
        "test_rows": len(shared["tokens"]),
        "tasks": facts["tasks"],
        "task_of": encode(shared["task_of"].astype("<u1")),
        "tokens": encode(shared["tokens"].astype("<u2")),
        "answer_tokens": encode(_by_row(shared, shared["answer"]).astype("<u2")),
        "option_counts": encode(counts.astype("<u1")),
        "chance": float((1 / counts[counts > 0]).mean()) if counts.any() else None,
        "versions": base_facts["versions"],
        "untuned": _scores(shared, base),
    }


def _scores(shared: Mapping[str, NDArray[Any]], arrays: Mapping[str, NDArray[Any]]) -> Line:
    """Means over test rows, and the losses and hits of each."""
    tokens, answer = shared["tokens"], shared["answer"]
    losses = arrays["losses"].astype(np.float64)
    of_answer = _by_row(shared, np.where(answer, arrays["token_losses"].astype(np.float64), 0))
    hits = _hits(shared["option_counts"], shared["right"], arrays["options"])
    return {
        "loss": round(losses.sum() / tokens.sum(), 6),
        "row_loss": round((losses / tokens).mean(), 6),
        "answer_loss": round(of_answer.sum() / answer.sum(), 6) if answer.any() else None,
        "accuracy": round(float(hits.mean()), 4) if len(hits) else None,
        "general_loss": round(
            float(arrays["general"].sum(dtype=np.float64) / shared["general_tokens"].sum()), 6
        ),
        "losses": encode(losses.astype("<f2")),
        "answer_losses": None if answer.all() else encode(of_answer.astype("<f2")),
        "hits": encode(np.packbits(hits)),
    }


def _by_row(shared: Mapping[str, NDArray[Any]], values: NDArray[Any]) -> NDArray[Any]:
    """Sums of a token's values over each row."""
    starts = np.cumsum(shared["tokens"]) - shared["tokens"]
    return np.add.reduceat(values, starts, dtype=np.float64)


def _hits(
    counts: NDArray[np.int16], right: NDArray[np.int16], losses: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Of each row with options, whether the right one is the likeliest."""
    pieces = np.split(losses, np.cumsum(counts[counts > 0])[:-1]) if counts.any() else []
    wanted = right[counts > 0]
    return np.array([p.argmin() == w for p, w in zip(pieces, wanted, strict=True)], dtype=bool)


def encode(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def decode(text: str, kind: str) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def seeds_of(lines: Mapping[str, Line], cell: str, budget: str, method: str) -> dict[int, Line]:
    """The trials of a method in a cell, by seed."""
    start = f"{cell}/{budget}/{method}-"
    own = {name.removeprefix(start): line for name, line in lines.items() if name.startswith(start)}
    return {int(seed): line for seed, line in sorted(own.items()) if seed.isdecimal()}


def common_seeds(each: Sequence[Mapping[int, Line]]) -> list[int]:
    """Seeds that all of them have."""
    return sorted(set.intersection(*map(set, each))) if each else []
