"""Markdown tables of a comparison, as `docs/evidence.md` has them.

python benchmarks/evidence.py runs/first/comparisons/5177/comparison.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

COLUMNS = (
    *("method", "loss", "sd", "difference to {reference} (95%)", "exact match", "rows"),
    *("tokens a row", "own share", "sources", "seconds to select"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="comparison.json")
    comparison = json.loads(parser.parse_args().file.read_text())
    for target in comparison["targets"]:
        print(f"\n**{target['target']}**, {target['test_rows']} test rows, seeds", end=" ")
        print(*comparison["seeds"], sep=", ", end="\n\n")
        print(line(COLUMNS).format(reference=comparison["reference"]))
        print(line(["---"] * len(COLUMNS)))
        for method in target["methods"]:
            print(line(cells(method)))
        untuned = f"{target['base_loss']:.4f}", "", "", share(target["base_exact_match"])
        print(line(["not tuned", *untuned, *[""] * (len(COLUMNS) - 5)]))


def line(parts: Any) -> str:
    return "| " + " | ".join(parts) + " |"


def cells(method: dict[str, Any]) -> list[str]:
    losses, matches = method["losses"], method["exact_matches"]
    return [
        method["name"],
        f"{fmean(losses):.4f}",
        f"{stdev(losses):.4f}" if len(losses) > 1 else "",
        interval(method["to_reference"]),
        share(fmean(matches) if matches else None),
        f"{method['rows']:.0f}",
        f"{method['row_tokens'][1]:.0f}",
        "" if method["own_share"] is None else f"{method['own_share']:.1f}x",
        f"{method['sources']:.0f}",
        f"{method['cost']['seconds']:.0f}",
    ]


def interval(one: dict[str, float] | None) -> str:
    if one is None:
        return ""
    return f"{one['mean']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})".replace("-", "\u2212")


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    main()
