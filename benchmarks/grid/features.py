"""Rows, warm-up and features of the union, written by the library's own code without Ray."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers.trainer_callback import PrinterCallback

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.config import Features, SeedSettings, TrainingPlan
from g2is_ray.data.examples import ExampleSet, write_examples
from g2is_ray.features.embeddings import EmbeddingWriter
from g2is_ray.features.gradient_writer import GradientWriter
from g2is_ray.features.vectors import normalize
from g2is_ray.features.writer import FeaturePart, FeatureWriter
from g2is_ray.models import loading
from g2is_ray.training.tuning import TunedModel
from g2is_ray.workspace import scratch
from g2is_ray.workspace.layout import POOL, WARMUP
from g2is_ray.workspace.workspace import Workspace, part_name
from grid.data import Data, Row, draw
from grid.design import TARGETS, Scale, Settings

log = logging.getLogger(__name__)


class Source:
    """The union and the targets in a workspace. Each thing is made when it is first asked for.

    A killed process loses a part of the features, or the warm-up, at most.
    """

    def __init__(self, folder: Path, data: Path, scale: Scale, settings: Settings) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.scale, self.settings = folder, scale, settings
        self.workspace = Workspace(str(folder))
        tokenizer = loading.load_tokenizer(settings.model)
        self.encoder = ChatEncoder(tokenizer, max_tokens=settings.read.max_tokens)
        self.data: Data = draw(data, scale, self.encoder)
        self._writers: dict[Features, FeatureWriter] = {}
        self._write(POOL, self.data.union)
        for name in TARGETS:
            self._write(f"targets/{name}/val", self.data.select[name])
        self.tokens = ExampleSet(self.workspace, POOL).supervised_tokens()

    def _write(self, stage: str, rows: Sequence[Row]) -> None:
        """Write an example set, and refuse one that was drawn otherwise before."""
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        file = self.folder / "rows" / f"{stage.replace('/', '-')}.jsonl"
        if file.exists() and file.read_text() != lines:
            raise SystemExit(f"{file} holds other rows: use another --workspace")
        if self.workspace.stage(stage).finished():
            return
        file.parent.mkdir(exist_ok=True)
        file.write_text(lines)
        receipt = write_examples(
            self.workspace, stage, [str(file)], self.encoder, self.settings.read
        )
        assert receipt["rows"] == len(rows), f"{stage}: some rows cannot be read"

    def features(
        self, kind: Features, rows: NDArray[np.int64], *, center: bool
    ) -> NDArray[np.float32]:
        """Unit features [n, d] of rows of the union, the mean of just these subtracted or not."""
        part_rows = self.settings.read.part_rows
        unit: list[NDArray[np.float16]] = []
        norms: list[NDArray[np.float32]] = []
        for part in np.unique(rows // part_rows).tolist():
            self._require(FeaturePart(examples=POOL, stage=kind, part=part))
            at = rows[rows // part_rows == part] - part * part_rows
            unit.append(self._array(kind, part)[at])
            norms.append(self._array(kind, part, ".norms")[at])
        x, lengths = np.concatenate(unit).astype(np.float32), np.concatenate(norms)
        if not center:
            return normalize(x)
        x *= lengths[:, None]
        return normalize(x, x[lengths > 0].mean(axis=0, dtype=np.float64))

    def mean(self, kind: Features, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean feature [d] of rows of the union."""
        part_rows = self.settings.read.part_rows
        total, count = 0, 0
        for part in np.unique(rows // part_rows).tolist():
            at = rows[rows // part_rows == part] - part * part_rows
            lengths = self._array(kind, part, ".norms")[at]
            total = total + lengths.astype(np.float64) @ self._array(kind, part)[at]
            count += np.count_nonzero(lengths)
        return np.asarray(total / count)

    def of_target(
        self, target: str, kind: Features, mean: NDArray[np.float64] | None
    ) -> NDArray[np.float32]:
        """Unit features [m, d] of a target; `mean` is subtracted from embeddings, as select does.

        A target's gradients lack the momentum that is most of the pool's mean.
        """
        stage = f"targets/{target}/{kind}"
        parts = ExampleSet(self.workspace, f"targets/{target}/val").parts
        for part in range(parts):
            self._require(FeaturePart(examples=f"targets/{target}/val", stage=stage, part=part))
        unit, norms = (
            np.concatenate([self._array(stage, part, end) for part in range(parts)])
            for end in ("", ".norms")
        )
        x = unit.astype(np.float32)
        if mean is None or kind == "gradients":
            return normalize(x)
        return normalize(x * norms[:, None], mean)

    def _array(self, stage: str, part: int, end: str = "") -> NDArray[np.floating]:
        return self.workspace.storage.read_array(f"{stage}/{part_name(part)}{end}.npy")

    def _require(self, part: FeaturePart) -> None:
        if not self.workspace.storage.exists(f"{part.stage}/{part_name(part.part)}.json"):
            self._writer(part.stage.rpartition("/")[2]).write(part)
            log.info("%s", part)

    def _writer(self, kind: str) -> FeatureWriter:
        if kind not in self._writers:
            self._writers[kind] = self._gradients if kind == "gradients" else self._embeddings
        return self._writers[kind]

    @cached_property
    def _embeddings(self) -> EmbeddingWriter:
        own = self.settings
        return EmbeddingWriter(
            self.workspace,
            model=own.model,
            execution=own.execution,
            max_tokens=own.read.max_tokens,
        )

    @cached_property
    def _gradients(self) -> GradientWriter:
        own = self.settings
        if self.workspace.stage(WARMUP).verified() is None:
            self._warm_up()
        return GradientWriter(
            self.workspace,
            model=own.model,
            gradients=own.gradients,
            seed=SeedSettings(),
            execution=own.execution,
            max_tokens=own.read.max_tokens,
        )

    def _warm_up(self) -> None:
        """On rows that all pools have, so on none of a target's own kind."""
        own, scale = self.settings, self.scale
        shared = scale.pool_rows - scale.own_rows("common")
        count = max(1, int(own.warmup.warmup_fraction * scale.pool_rows))
        rows = np.random.default_rng(0).choice(shared, size=count, replace=False)
        plan = TrainingPlan(
            model=own.model,
            lora=own.lora,
            epochs=own.warmup.warmup_epochs,
            learning_rate=own.warmup.warmup_learning_rate,
            batch_size=max(1, min(128, count // 10)),
            schedule="linear",
            max_tokens=own.read.max_tokens,
            seed=0,
            checkpoints=1,
        )
        with scratch.folder() as temporary:
            tuned = TunedModel(
                self.workspace, WARMUP, plan, rows.tolist(), own.execution, scratch=temporary
            )
            tuned.trainer.remove_callback(PrinterCallback)
            tuned.train()
            tuned.save()
        log.info("warmup: done")
