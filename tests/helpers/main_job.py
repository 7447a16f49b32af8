"""The main job on the bundled model and a few rows, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "data"

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
    return [
        *(sys.executable, "-m", "jobs.cli", "run"),
        *("--config", str(inputs / "run.yaml"), "--workspace", str(workspace)),
        *("--pool", str(inputs / "pool.jsonl")),
        *(
            more
            or ("--target", f"gsm8k={inputs}/val.jsonl", "--test", f"gsm8k={inputs}/test.jsonl")
        ),
    ]


def run(arguments: list[str]) -> str:
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stderr


def environment() -> dict[str, str]:
    return os.environ | {"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
