"""Trials: a model tuned on one selection, and what it makes of the test rows.

A trial is one file, `trials/TARGET/LEVEL/BUDGET/METHOD-SEED.npz`: `facts` as JSON, the rows of the
union that were picked, and the arrays of `measure`. What does not differ between trials of a
target is in `targets-of-trials/TARGET.npz`: see `write_target`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.trainer_callback import PrinterCallback

from g2is_ray.models import loading
from g2is_ray.training.tuning import TunedModel
from g2is_ray.workspace import scratch
from grid.design import TARGETS, Cell, Scale, Settings, TrialKey
from grid.features import Source
from grid.files import write_whole
from grid.measure import Measures, measure
from grid.pools import CellPool

log = logging.getLogger(__name__)


def trial_file(folder: Path, key: TrialKey) -> Path:
    return folder / "trials" / f"{key}.npz"


def base_file(folder: Path, target: str) -> Path:
    """The untuned model's scores."""
    return folder / "trials" / f"{target}-base.npz"


def versions() -> dict[str, str]:
    packages = ("g2is-ray", "torch", "transformers", "peft", "numpy")
    return {name: version(name) for name in packages}


class Runner:
    """Runs one trial after another, of one cell after another."""

    def __init__(
        self, folder: Path, data: Path, scale: Scale, settings: Settings, commit: str
    ) -> None:
        self._folder, self._settings, self._commit = folder, settings, commit
        self._source = Source(folder, data, scale, settings)
        encoder = self._source.encoder
        self._pad_id = encoder.tokenizer.pad_token_id or 0
        held = self._source.data
        self._general = [encoder.encode(row["messages"]) for row in held.general]
        self._measures = {name: Measures.of(held.test[name], encoder) for name in TARGETS}
        self._pool: tuple[Cell, CellPool] | None = None
        for name, own in self._measures.items():
            write_target(folder, name, own, self._general)
            self._measure_base(name)

    def _measure_base(self, target: str) -> None:
        file = base_file(self._folder, target)
        if not file.exists():
            device = loading.default_device()
            base = loading.load_base(self._settings.model, device, "auto")
            found = measure(base, self._measures[target], self._general, self._pad_id)
            _write(file, {"commit": self._commit, "versions": versions()}, found)

    def run(self, key: TrialKey) -> None:
        """Select, tune, measure, and store."""
        began = time.process_time()
        if self._pool is None or self._pool[0] != key.cell:
            self._pool = None  # before the next is made
            self._pool = key.cell, CellPool(self._source, key.cell)
        pool = self._pool[1]
        picks = pool.select(key.method, key.budget, key.seed)
        selected = time.process_time()
        model, facts = self._tuned(picks.tolist(), key.seed, pool.mean_rows(key.budget))
        tuned = time.process_time()
        found = measure(model, self._measures[key.cell.target], self._general, self._pad_id)
        own = TARGETS[key.cell.target].sources
        sources = [self._source.data.union[row]["source"] for row in picks]
        facts |= {
            "cell": str(key.cell),
            "budget": str(key.budget),
            "method": key.method,
            "amount": pool.amount(key.budget).amount,
            "tokens": int(self._source.tokens[picks].sum()),
            "own_rows": sum(source in own for source in sources),
            "sources": len(set(sources)),
            "pool_rows": len(pool.rows),
            "pool_own_rows": int(np.isin(pool.rows, self._source.data.own[key.cell.target]).sum()),
            "pool_tokens": int(pool.tokens.sum()),
            "commit": self._commit,
            "versions": versions(),
            "cpu_seconds": {  # of this process: a selection may include features and graph
                "select": round(selected - began, 1),
                "tune": round(tuned - selected, 1),
                "measure": round(time.process_time() - tuned, 1),
            },
        }
        _write(trial_file(self._folder, key), facts, {"picks": picks.astype(np.int32)} | found)

    def _tuned(self, rows: list[int], seed: int, mean_rows: float) -> tuple[Any, dict[str, Any]]:
        """As `g2is compare` tunes a trial."""
        stage = f"tuning-{os.getpid()}"  # for the library's log of losses, which is removed
        with scratch.folder() as temporary:
            tuned = TunedModel(
                self._source.workspace,
                stage,
                self._settings.tuning(seed, mean_rows),
                rows,
                self._settings.execution,
                scratch=temporary,
            )
            tuned.trainer.remove_callback(PrinterCallback)
            tuned.train()
        self._source.workspace.storage.remove(stage)
        facts = tuned.facts()
        del facts["seconds"]
        model = tuned.model()
        if model.device.type == "cuda":  # it would keep options from caching
            model.gradient_checkpointing_disable()
        return model, facts


def _write(file: Path, facts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    held = arrays | {"facts": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)}
    write_whole(file, lambda stream: np.savez_compressed(stream, **held))


def write_target(folder: Path, name: str, own: Measures, general: list[Any]) -> None:
    """What a target's trials share: lengths, which tokens are the answer's, tasks, options."""
    tasks, task_of = np.unique(own.tasks, return_inverse=True)
    arrays = {
        "tokens": own.tokens,
        "answer": own.answer,
        "option_counts": own.option_counts,
        "right": own.right,
        "task_of": task_of.astype(np.int16),
        "general_tokens": np.array([one.supervised_tokens for one in general], dtype=np.int32),
    }
    _write(folder / "targets-of-trials" / f"{name}.npz", {"tasks": tasks.tolist()}, arrays)
