"""A run that is small but real, for tests that disturb it."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from jobs.cli import main

DATA = Path(__file__).parents[2] / "examples" / "data"
STAGES = {"gradients": ["--projection-dim", "512"], "graph": ["--neighbors", "6"]}


def make_ready(folder: Path, tiny_model: str) -> Path:
    """A workspace whose gradients are to be taken: twelve parts of a pool, one of a target."""
    for name, rows in (("pool", 96), ("target-gsm8k-val", 8)):
        lines = (DATA / f"{name}.jsonl").read_text().splitlines(keepends=True)[:rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    own_warm_up(folder / "own", tiny_model)
    there = ["--workspace", str(folder / "ws")]
    files = ["--pool", f"{folder}/pool.jsonl", "--target", f"gsm8k={folder}/target-gsm8k-val.jsonl"]
    reading = ["--part-rows", "8", "--max-tokens", "256", "--max-rejected", "0.1"]
    assert main(["ingest", *files, *reading, "--model", tiny_model, *there]) == 0
    assert main(["warmup", "--warmup-from", str(folder / "own"), *there]) == 0
    return folder / "ws"


def own_warm_up(folder: Path, tiny_model: str) -> None:
    """A checkpoint folder as a Trainer leaves it: without a training, hence without Ray."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    state = {"global_step": 1, "log_history": [{"step": 1, "learning_rate": 1e-3}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def command(stage: str, workspace: Path, address: str, *more: str, workers: int = 2) -> list[str]:
    there = ["--address", address, "--workspace", str(workspace)]
    return [stage, *STAGES[stage], "--workers", str(workers), *there, *more]


def arrays(workspace: Path, stage: str) -> dict[str, bytes]:
    files = sorted((workspace / stage).rglob("*.npy"))
    assert files
    return {file.name: file.read_bytes() for file in files}


class Events:
    """Events of the pool, and something to do at the first of some events."""

    def __init__(self, progress, monkeypatch) -> None:
        self._log_event = progress.log_event
        monkeypatch.setattr(progress, "log_event", self)
        self.told: list[tuple[str, dict]] = []
        self._plans: list[tuple[str, int, Callable[[], object]]] = []

    def __call__(self, name: str, facts: dict) -> None:
        self._log_event(name, facts)
        self.told.append((name, facts))
        for plan in list(self._plans):
            event, workers, act = plan
            if name == event and len(self.of("worker_ready")) >= workers:
                self._plans.remove(plan)
                act()

    def at(self, event: str, act: Callable[[], object], *, workers: int = 0) -> None:
        """Do something at the first event of this name after so many workers were ready."""
        self._plans.append((event, workers, act))

    def of(self, name: str) -> list[dict]:
        return [facts for event, facts in self.told if event == name]
