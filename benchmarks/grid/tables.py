"""Tables of the grid in Markdown, with intervals and with a correction for many pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from g2is_ray.comparison.significance import Interval, paired_interval
from grid.design import DEFAULT, LEVELS, METHODS, REFERENCE, TARGETS, TrialKey
from grid.results import Line, Results, common_seeds, decode, seeds_of

_ALPHA = 0.05
_FILE = "tables.md"
_HEAD = """# Tables of the grid

Made by `python benchmarks/evidence_grid.py --tables`; `docs/evidence.md` says what was run. A
**cell** is a target and how much of its own kind the pool of 10,000 rows holds: none, rare (2%),
common (20%, or all rows there are: gsm8k and finance 10%, sql 11%, boolq 12%, sensemaking
17%). The default was chosen on gsm8k and bbh, so the other five targets test it. All losses are of
the bundled model of 3.6 million parameters, in nats per supervised token.

**What an interval covers**: paired differences over test rows, and over seeds (adapter, order of
rows, and what random draws) where there are several; one seed says nothing of other trainings, and
with two an interval may cover 87% instead of 95% where trainings differ more than rows.
bbh's rows come in 27 tasks, so its samples are tasks. The draw of the target's 64 rows, the warm-up
and the projection are as they are: no interval has them. **\\*** marks differences whose p-value is
below 0.05 after Holm's correction for all pairs of that table.
"""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Loss of one method less that of another in a cell."""

    interval: Interval
    p: float
    seeds: int


def write_tables(results: Results, planned: Sequence[TrialKey]) -> None:
    """Write `tables.md`, and print how far the grid has come."""
    planned_by, done_by = Counter(), Counter()
    for key in planned:
        planned_by[str(key.budget)] += 1
        done_by[str(key.budget)] += str(key) in results.lines
    rows = [[b, str(done_by[b]), str(planned_by[b])] for b in planned_by]
    progress = table(["budget", "trials done", "of"], rows)
    parts = [_HEAD, f"## Trials\n\n{progress}", _effort(results, planned)]
    for budget in planned_by:
        if done_by[budget]:
            parts += _budget(results, budget)
    (results.folder / _FILE).write_text("\n".join(part for part in parts if part))
    print(progress)


def _effort(results: Results, planned: Sequence[TrialKey]) -> str:
    """CPU time of what was done, and what that makes of the rest, by budget."""
    spent: dict[str, list[float]] = {}
    for name, line in results.lines.items():
        own = line["cpu_seconds"]
        spent.setdefault(name.split("/")[2], []).append(own["tune"] + own["measure"])
    if not spent:
        return ""
    by_token = sum(map(sum, spent.values())) / sum(
        line["tokens"] for line in results.lines.values()
    )
    pool_tokens = fmean(line["pool_tokens"] for line in results.lines.values())
    total = 0.0
    for key in planned:
        known = spent.get(str(key.budget))
        total += fmean(known) if known else by_token * pool_tokens * key.budget.share
    done = sum(map(sum, spent.values()))
    return (
        f"Tuning and measuring took {done / 3600:.1f} CPU hours (of one process; not a measure of "
        f"speed on a busy machine). At that rate the whole grid takes about {total / 3600:.0f}, "
        "features and graphs not counted.\n"
    )


def _budget(results: Results, budget: str) -> list[str]:
    found = {name.rpartition("-")[0] for name in results.lines}
    cells = [
        f"{target}/{level}"
        for level in LEVELS
        for target, kind in TARGETS.items()
        if level in kind.levels
    ]
    methods = [m for m in METHODS if any(f"{c}/{budget}/{m}" in found for c in cells)]
    parts = [f"## Budget {budget}\n"]
    for other in (REFERENCE, DEFAULT):
        pairs = {
            (cell, method): one
            for cell in cells
            for method in methods
            if method != other and (one := difference(results, cell, budget, method, other))
        }
        if pairs:
            parts.append(_matrix(pairs, cells, [m for m in methods if m != other], other))
    parts += [_cell(results, cell, budget, methods) for cell in cells]
    return parts


def _matrix(
    pairs: Mapping[tuple[str, str], Difference],
    cells: Sequence[str],
    methods: Sequence[str],
    other: str,
) -> str:
    """Differences to one method: a row per cell, a column per method."""
    kept = dict(zip(pairs, holm([one.p for one in pairs.values()]), strict=True))
    rows = []
    for cell in cells:
        own = [pairs.get((cell, method)) for method in methods]
        if any(own):
            seeds = {one.seeds for one in own if one}
            marks = [bool(kept.get((cell, method))) for method in methods]
            shown = [
                _signed(d.interval.mean, m) if d else "" for d, m in zip(own, marks, strict=True)
            ]
            rows.append([_named(cell), "-".join(map(str, sorted(seeds))), *shown])
    testing = [c for c in cells if not TARGETS[c.partition("/")[0]].chose]
    for level in LEVELS:
        at = [c for c in testing if c.endswith(f"/{level}")]
        means, counts = [], set()
        for method in methods:
            held = [pairs[c, method].interval.mean for c in at if (c, method) in pairs]
            counts.add(len(held))
            means.append(_signed(fmean(held)) if held else "")
        if any(means):
            many = "-".join(map(str, sorted(counts)))
            rows.append([f"**mean of {many} testing, {level}**", "", *means])
    text = table(["cell", "seeds", *methods], rows)
    return (
        f"### Difference to {other} (negative is better)\n\n{text}\n"
        f"{len(pairs)} pairs; † marks a target that chose the default.\n"
    )


def _named(cell: str) -> str:
    return f"{cell} †" if TARGETS[cell.partition("/")[0]].chose else cell


def _cell(results: Results, cell: str, budget: str, methods: Iterable[str]) -> str:
    target = results.targets.get(cell.partition("/")[0])
    rows = []
    for method in methods:
        own = seeds_of(results.lines, cell, budget, method)
        if own:
            rows.append(_method(results, cell, budget, method, list(own.values())))
    if not rows or target is None:
        return ""
    rows.sort(key=lambda row: float(row[2]))
    base = target["untuned"]
    rows.append(["not tuned", "", *_scores([base]), *[""] * 5])
    columns = (
        *("method", "seeds", "loss", "per row", "answer's tokens", "accuracy", "general"),
        *("rows", "own rows", "sources", "to random (95%)", f"to {DEFAULT} (95%)"),
    )
    chance = target["chance"]
    note = f"{target['test_rows']} test rows"
    note += f" of {len(target['tasks'])} tasks" if len(target["tasks"]) > 1 else ""
    note += f"; chance {chance:.1%}" if chance else ""
    return f"### {_named(cell)}\n\n{note}\n\n{table(columns, rows)}"


def _method(
    results: Results, cell: str, budget: str, method: str, lines: Sequence[Line]
) -> list[str]:
    intervals = []
    for other in (REFERENCE, DEFAULT):
        one = None if other == method else difference(results, cell, budget, method, other)
        intervals.append(_interval(one.interval) if one else "")
    own = f"{_mean(lines, 'own_rows'):.0f} of {lines[0]['pool_own_rows']}"
    return [
        method,
        str(len(lines)),
        *_scores(lines),
        f"{_mean(lines, 'rows'):.0f}",
        own if lines[0]["pool_own_rows"] else "",
        f"{_mean(lines, 'sources'):.0f}",
        *intervals,
    ]


def _scores(lines: Sequence[Line]) -> list[str]:
    losses = [f"{_mean(lines, name):.4f}" for name in ("loss", "row_loss")]
    answer = lines[0]["answer_loss"] is not None
    asked = lines[0]["accuracy"] is not None
    return [
        *losses,
        f"{_mean(lines, 'answer_loss'):.4f}" if answer else "",
        f"{_mean(lines, 'accuracy'):.1%}" if asked else "",
        f"{_mean(lines, 'general_loss'):.4f}",
    ]


def _mean(lines: Sequence[Line], name: str) -> float:
    return fmean(line[name] for line in lines)


def difference(
    results: Results, cell: str, budget: str, method: str, other: str
) -> Difference | None:
    """Loss per token of a method less another's, over the seeds that both have; None without."""
    target = results.targets[cell.partition("/")[0]]
    both = [seeds_of(results.lines, cell, budget, name) for name in (method, other)]
    seeds = common_seeds(both)
    if not seeds:
        return None
    tokens = decode(target["tokens"], "<u2").astype(np.float64)
    ours, theirs = (np.stack([_losses(own[seed]) for seed in seeds]) for own in both)
    differences = ours - theirs
    if len(target["tasks"]) > 1:
        task_of = decode(target["task_of"], "<u1")
        differences = np.stack([np.bincount(task_of, own) for own in differences])
        tokens = np.bincount(task_of, tokens)
    interval = paired_interval(differences, tokens)
    return Difference(interval=interval, p=p_value(interval, differences, tokens), seeds=len(seeds))


def _losses(line: Line) -> NDArray[np.float64]:
    return decode(line["losses"], "<f2").astype(np.float64)


def p_value(
    interval: Interval, differences: NDArray[np.float64], weights: NDArray[np.float64]
) -> float:
    """Two-sided p-value of a mean of zero, with the interval's own degrees of freedom.

    Args:
        interval: as `paired_interval` gives it for differences [k, n] and weights [n].
    """
    seeds, rows = differences.shape
    total, by_seed = weights.sum(), differences.sum(axis=1) / weights.sum()
    residuals = differences.mean(axis=0) - interval.mean * weights
    parts = [(rows / (rows - 1) * np.square(residuals).sum() / total**2, rows - 1)]
    if seeds > 1:
        parts.append((by_seed.var(ddof=1) / seeds, seeds - 1))
    variance = sum(own for own, _ in parts)
    if not variance:
        return 1.0
    free = variance**2 / sum(own**2 / free for own, free in parts)
    return float(2 * t.sf(abs(interval.mean) / math.sqrt(variance), free))


def holm(p: Sequence[float]) -> list[bool]:
    """Which hypotheses are rejected at a family-wise error of 5% (Holm, 1979)."""
    rejected = [False] * len(p)
    for number, place in enumerate(np.argsort(p)):
        if p[place] > _ALPHA / (len(p) - number):
            break
        rejected[place] = True
    return rejected


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    line: Callable[[Iterable[Any]], str] = lambda parts: "| " + " | ".join(parts) + " |"  # noqa: E731
    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows), ""])


def _signed(value: float, marked: bool = False) -> str:
    return f"{value:+.3f}{'*' if marked else ''}".replace("-", "\u2212")


def _interval(one: Interval) -> str:
    return f"{one.mean:+.4f} ({one.low:+.4f} to {one.high:+.4f})".replace("-", "\u2212")
