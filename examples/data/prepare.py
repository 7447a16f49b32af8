"""Draws the small data of this folder from the benchmark data it comes from.

    python prepare.py SOURCE_FOLDER [--output FOLDER]

SOURCE_FOLDER holds `pool.jsonl.gz`, `target-gsm8k-val.jsonl` and `target-gsm8k-test.jsonl`. Lines
are copied as they are; the same source and seed give the same bytes.
"""

import argparse
import gzip
import json
import logging
import random
from collections import Counter, defaultdict
from pathlib import Path

logger = logging.getLogger("prepare")

POOL_ROWS = 1500
TEST_ROWS = 100
MAX_CHARACTERS = 1200  # in all messages of a row together, so that the demo is fast
SEED = 20240607

# Every source whose license lets anyone pass its rows on, for any purpose and without share-alike;
# README.md has the terms of each. Not a matter of taste: alpaca and alpaca-gpt4-zh are
# non-commercial; arc-*, boolq, spider, cot-ecqa and cot-sensemaking are share-alike, at least
# upstream; BIG-Bench asks to be kept out of training corpora.
LICENSES = {
    "codegen": "MIT",
    "toolformer": "MIT",
    "roleplay": "MIT",
    "cot-aqua": "Apache-2.0",
    "cot-creak": "Apache-2.0",
    "cot-qasc": "Apache-2.0",
    "cot-strategyqa": "Apache-2.0",
    "openbookqa": "Apache-2.0",
    "gsm8k": "MIT",
    "wikisql": "BSD-3-Clause",
    "tatqa": "CC-BY-4.0",
}
PERMITTED_LICENSES = {"MIT", "Apache-2.0", "BSD-3-Clause", "CC-BY-4.0"}

# Sources that a demo looks for: few rows, but enough to be found. The others share what is left.
FIXED_ROWS = {"gsm8k": 40, "wikisql": 40, "tatqa": 40}


def read_lines(path: Path) -> list[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [line.rstrip("\n") for line in lines]


def characters(row: dict) -> int:
    return sum(len(message["content"]) for message in row["messages"])


def rows_per_source(sizes: dict[str, int]) -> dict[str, int]:
    """How many rows to draw of each source: the fixed ones, then by share, `POOL_ROWS` in all.

    Shares are rounded down, and the rows still missing go to the largest remainders.
    """
    rest = POOL_ROWS - sum(FIXED_ROWS.values())
    others = {source: size for source, size in sizes.items() if source not in FIXED_ROWS}
    exact = {source: rest * size / sum(others.values()) for source, size in others.items()}
    counts = {source: int(share) for source, share in exact.items()}
    by_remainder = sorted(exact, key=lambda source: (counts[source] - exact[source], source))
    for source in by_remainder[: rest - sum(counts.values())]:
        counts[source] += 1
    return counts | FIXED_ROWS


def draw_pool(lines: list[str], rng: random.Random) -> list[str]:
    """A stratified draw of short rows from the permitted sources, in the order of the pool."""
    sizes, short = Counter(), defaultdict(list)
    for index, line in enumerate(lines):
        row = json.loads(line)
        if row["source"] in LICENSES:
            sizes[row["source"]] += 1
            if characters(row) <= MAX_CHARACTERS:
                short[row["source"]].append(index)
    drawn = []
    for source, count in sorted(rows_per_source(sizes).items()):
        drawn += rng.sample(short[source], count)
    return [lines[index] for index in sorted(drawn)]


def check(pool: list[str], targets: dict[str, list[str]]) -> None:
    """Fails on a row that must not be shipped, and on a question that two files share."""
    assert set(LICENSES.values()) <= PERMITTED_LICENSES
    assert len(pool) == POOL_ROWS
    seen = set()
    for name, lines in {"pool": pool, **targets}.items():
        rows = [json.loads(line) for line in lines]
        sources = {row["source"] for row in rows}
        assert sources <= LICENSES.keys(), f"{name}: no license to ship {sources - LICENSES.keys()}"
        prompts = {row["messages"][0]["content"] for row in rows}
        assert len(prompts) == len(rows), f"{name}: a prompt twice"
        assert not prompts & seen, f"{name}: a prompt of another file"
        seen |= prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with pool.jsonl.gz and the target files")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent, help="default: the script's folder"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    pool = draw_pool(read_lines(args.source / "pool.jsonl.gz"), random.Random(SEED))
    targets = {
        "target-gsm8k-val": read_lines(args.source / "target-gsm8k-val.jsonl"),
        "target-gsm8k-test": read_lines(args.source / "target-gsm8k-test.jsonl")[:TEST_ROWS],
    }
    check(pool, targets)
    for name, lines in {"pool": pool, **targets}.items():
        text = "\n".join(lines) + "\n"
        (args.output / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
        logger.info("%s: %d rows, %d bytes", name, len(lines), len(text.encode()))
    for source, count in Counter(json.loads(line)["source"] for line in pool).most_common():
        logger.info("pool: %4d rows of %s (%s)", count, source, LICENSES[source])


if __name__ == "__main__":
    main()
