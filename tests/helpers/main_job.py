"""The main job on the bundled model and a few rows."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "data"
G2IS = [sys.executable, "-m", "jobs.cli"]
"""The command in a process of its own, for a test that kills it."""

SETTINGS = f"""
model: {ROOT / "examples" / "tiny-lm"}
fraction: 0.2
baselines: [random, paper]
max_tokens: 128
max_rejected: 0.1
part_rows: 12
neighbors: 6
projection_dim: 512
lora_r: 2
lora_alpha: 8
warmup_fraction: 0.2
warmup_epochs: 3
warmup_batch_size: 2
warmup_learning_rate: 1.0e-3
checkpoints: 2
tune_batch_size: 2
exact_match_rows: 2
max_new_tokens: 4
"""


def head(source: Path, rows: int, to: Path) -> Path:
    to.write_text("".join(source.read_text().splitlines(keepends=True)[:rows]))
    return to


def write_inputs(folder: Path) -> Path:
    head(DATA / "pool.jsonl", 36, folder / "pool.jsonl")
    head(DATA / "target-gsm8k-val.jsonl", 8, folder / "val.jsonl")
    head(DATA / "target-gsm8k-test.jsonl", 6, folder / "test.jsonl")
    (folder / "run.yaml").write_text(SETTINGS)
    return folder


def command(inputs: Path, workspace: Path, *more: str) -> list[str]:
    """The arguments of `g2is` for the main job; `more` replaces target and test rows."""
    return [
        *("run", "--config", str(inputs / "run.yaml"), "--workspace", str(workspace)),
        *("--pool", str(inputs / "pool.jsonl")),
        *(
            more
            or ("--target", f"gsm8k={inputs}/val.jsonl", "--test", f"gsm8k={inputs}/test.jsonl")
        ),
    ]


def run(arguments: list[str]) -> str:
    """Run `g2is` in this process with arguments that it accepts; returns its log lines."""
    from jobs.cli import main

    log = io.StringIO()
    with logging_kept(), contextlib.redirect_stderr(log):
        status = main(arguments)
    assert status == 0, log.getvalue()[-6000:]
    return log.getvalue()


@contextlib.contextmanager
def logging_kept() -> Iterator[None]:
    """Undo what a command does to the root logger, whose handler writes to stderr as it is now."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def environment() -> dict[str, str]:
    """The environment of a command in a process of its own."""
    return os.environ | {"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
