"""Read pool and targets into the workspace."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from g2is_ray import models
from g2is_ray.chat import ChatEncoder
from g2is_ray.config import (
    ModelSettings,
    PoolSettings,
    ReadSettings,
    SeedSettings,
    TargetSettings,
    as_dict,
)
from g2is_ray.errors import SettingError
from g2is_ray.examples import write_examples
from g2is_ray.reading import describe, expand
from jobs.session import Session

log = logging.getLogger(__name__)


def ingest(session: Session) -> None:
    """Write the pool and every given target as example sets."""
    pool = session.settings(PoolSettings, "pool")
    targets = session.settings(TargetSettings)
    for name in targets.test:
        if name not in targets.target and not session.workspace.exists(f"targets/{name}/val"):
            raise SettingError(f"test {name} has no target of that name; give --target {name}=FILE")
    for file in (*targets.target.values(), *targets.test.values()):
        expand([file])  # one that is missing shows before the pool is read
    _read(session, "pool", list(pool.pool), schema=pool.format, remember=as_dict(pool))
    for name, file in targets.target.items():
        _read(session, f"targets/{name}/val", [file], max_rows=targets.max_target_rows)
    for name, file in targets.test.items():
        _read(session, f"targets/{name}/test", [file])


def _read(
    session: Session,
    stage: str,
    sources: list[str],
    *,
    schema: str = "auto",
    max_rows: int | None = None,
    remember: dict[str, Any] | None = None,
) -> None:
    workspace = session.workspace
    if stage == "pool" and "pool" not in session.given and workspace.finished(stage):
        return  # nothing was asked of the files that it came from
    model, read, seed = pool_settings(session)
    files = expand(sources)
    decides = as_dict(read, model) | {"schema": schema, "files": [describe(f) for f in files]}
    for name in ("max_rejected", "dtype"):  # neither changes what is written
        del decides[name]
    remembered = as_dict(read, model, seed) | (remember or {})
    workspace.begin(stage, decides, arguments=remembered)
    if workspace.finished(stage):
        log.info("%s: already done", stage)
        return
    encoder = ChatEncoder(models.load_tokenizer(model), max_tokens=read.max_tokens)
    receipt = write_examples(
        workspace, stage, files, encoder, read, schema=schema, max_rows=max_rows
    )
    log.info(
        "%s: %d rows, %d rejected, %d truncated, %d tokens",
        stage,
        *(receipt[key] for key in ("rows", "rejected", "truncated", "tokens")),
    )


def pool_settings(session: Session) -> tuple[ModelSettings, ReadSettings, SeedSettings]:
    """Model, reading and seed settings in force, as the pool was read with."""
    model = session.settings(ModelSettings, "pool")
    if Path(model.model).is_dir():  # workers run in another folder
        model = dataclasses.replace(model, model=str(Path(model.model).resolve()))
    return (
        model,
        session.settings(ReadSettings, "pool"),
        session.settings(SeedSettings, "pool"),
    )
