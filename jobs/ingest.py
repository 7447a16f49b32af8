"""Read pool and targets into the workspace."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.chat.templates import asks_for_date, identity, today
from g2is_ray.config import (
    ModelSettings,
    PoolSettings,
    ReadSettings,
    SeedSettings,
    TargetSettings,
    as_dict,
)
from g2is_ray.data.examples import ExampleSet, write_examples
from g2is_ray.data.sources import describe, expand, held_out
from g2is_ray.errors import SettingError, WorkspaceError
from g2is_ray.models import loading
from g2is_ray.workspace.layout import POOL, targets_in
from g2is_ray.workspace.workspace import Workspace
from jobs.model import check_base, model_limits
from jobs.overlap import find_overlap
from jobs.session import Session, identified

log = logging.getLogger(__name__)

_UNLIKE = 4  # times as many supervised tokens a row


def ingest(session: Session) -> None:
    """Write the pool and every given target as example sets."""
    pool = session.settings(PoolSettings, "pool")
    targets = session.settings(TargetSettings)
    for name in targets.test:
        if name not in targets.target and not session.workspace.exists(f"targets/{name}/val"):
            raise SettingError(f"test {name} has no target of that name; give --target {name}=FILE")
    # A file that is missing shows before the model is loaded.
    files = expand(pool.pool) if "pool" in session.given else list(pool.pool)
    for file in (*targets.target.values(), *targets.test.values()):
        expand([file])
    model, read, _ = pool_settings(session)
    tokenizer = loading.load_tokenizer(model)
    if not session.workspace.finished("pool"):
        check_base(model, read.max_tokens)
    remember = as_dict(pool)
    del remember["append"]  # it is asked for once
    _read(session, tokenizer, "pool", files, schema=pool.format, remember=remember)
    if pool.append:
        _append(session, tokenizer, list(pool.append), pool.format)
    for name, file in (_removed(session, "val") | targets.target).items():
        _read(
            session,
            tokenizer,
            f"targets/{name}/val",
            [file],
            max_rows=targets.max_target_rows,
            remember={"target": {name: file}, "max_target_rows": targets.max_target_rows},
        )
    for name, file in (_removed(session, "test") | targets.test).items():
        remember = {"test": {name: file}}
        _read(session, tokenizer, f"targets/{name}/test", [file], remember=remember)
        _warn_of_unlike(session.workspace, name)
    find_overlap(session.workspace)


def _removed(session: Session, kind: str) -> dict[str, str]:
    """Files of the targets whose rows were removed to be read again, as they are remembered."""
    workspace = session.workspace
    return {
        target: session.sources([stage])[0]
        for target in targets_in(workspace)
        if (stage := f"targets/{target}/{kind}") in workspace.stages()
        and not workspace.names(stage)
        and session.sources([stage])
    }


def _read(
    session: Session,
    tokenizer: PreTrainedTokenizerBase,
    stage: str,
    sources: list[str],
    *,
    schema: str = "auto",
    max_rows: int | None = None,
    remember: dict[str, Any] | None = None,
) -> None:
    workspace = session.workspace
    model, read, seed = pool_settings(session)
    if not model.template_date and asks_for_date(tokenizer):
        model = dataclasses.replace(model, template_date=today())
    if stage == "pool" and "pool" not in session.given and workspace.finished(stage):
        # Nothing is asked of the files that it came from, but its tokens are to stay the same.
        known = workspace.stages()[stage]
        template = {"template": identity(tokenizer)}
        workspace.begin(stage, known["settings"] | template, arguments=known["arguments"])
        return
    files = expand(sources)
    decides = _decides(tokenizer, model, read, schema) | {"files": [describe(f) for f in files]}
    if stage == "pool":
        _warn_of_held_out(files)
    remembered = as_dict(read, model, seed) | (remember or {})
    remedies = {"files": "add files with --append"} if stage == "pool" else {}
    session.begin(stage, facts=decides, remember=remembered, remedies=remedies)
    if workspace.finished(stage):
        log.info("%s: already done", stage)
        return
    encoder = _encoder(tokenizer, model, read)
    receipt = write_examples(
        workspace, stage, files, encoder, read, schema=schema, max_rows=max_rows
    )
    _log_rows(stage, receipt)
    if receipt.get("appends") and "append" not in session.given and not workspace.finished(stage):
        raise WorkspaceError(
            f"{workspace.location(stage)}: a part of appended files is damaged; give the "
            "--append that read them again"
        )


def _append(
    session: Session, tokenizer: PreTrainedTokenizerBase, sources: list[str], schema: str
) -> None:
    """Add the rows of files that the pool does not have yet, as parts of their own.

    The set's receipt is written before the record: if it knows the append already, nothing
    but the record is missing, or a part that was damaged since.
    """
    workspace = session.workspace
    model, read, _ = pool_settings(session)
    decides = _decides(tokenizer, model, read, schema)
    held = workspace.stages()["pool"]["settings"]["files"]
    remembered = workspace.stages()["pool"]["arguments"]
    session.begin("pool", facts=decides | {"files": held}, remember=remembered)  # refuses others
    known = [_content(one) for one in held]
    files = expand(sources)
    _warn_of_held_out(files)
    described = {file: describe(file) for file in files}
    new = [file for file in files if _content(described[file]) not in known]
    asked = [described[file] for file in new or files]
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    pool = workspace.require("pool", "ingest")
    if not new and (name not in pool.get("appends", {}) or workspace.finished("pool")):
        log.info("pool: has all rows of %s already", ", ".join(files))
        return
    encoder = _encoder(tokenizer, model, read)
    receipt = write_examples(
        workspace, "pool", new or files, encoder, read, schema=schema, append=name
    )
    if new:
        workspace.extend("pool", identified(decides) | {"files": held + asked})
    log.info("pool: %d rows more", receipt["rows"] - pool["rows"])
    _log_rows("pool", receipt)


def _decides(
    tokenizer: PreTrainedTokenizerBase, model: ModelSettings, read: ReadSettings, schema: str
) -> dict[str, Any]:
    """Settings that decide what is written of a file."""
    decides = as_dict(read, model) | {"schema": schema, "template": identity(tokenizer)}
    for name in ("max_rejected", "dtype"):  # neither changes what is written
        del decides[name]
    return decides


def _encoder(
    tokenizer: PreTrainedTokenizerBase, model: ModelSettings, read: ReadSettings
) -> ChatEncoder:
    if tokenizer.chat_template is None:
        _warn_of_plain(model.model)
        tokenizer = copy.copy(tokenizer)  # the encoder gives it a template
    return ChatEncoder(
        tokenizer,
        max_tokens=read.max_tokens,
        template_date=model.template_date,
        vocabulary=model_limits(model).vocabulary,
    )


def _content(described: dict[str, Any]) -> dict[str, Any]:
    """What tells a file's content from another's, whatever it is called."""
    return {k: v for k, v in described.items() if k != "name"} or described


def _warn_of_held_out(files: list[str]) -> None:
    found = held_out(files)
    if found:
        log.warning(
            "pool: %s has a name of held-out rows, as have %d of %d files; leave it out unless it "
            "is to be trained on",
            *(found[0], len(found), len(files)),
        )


def _warn_of_unlike(workspace: Workspace, target: str) -> None:
    """Say if a target's own answers are of another length than those it is measured with.

    What is most like the target then need not help with the test: docs/evidence.md has a case.
    """
    own, test = (
        ExampleSet(workspace, f"targets/{target}/{kind}").supervised_tokens().mean()
        for kind in ("val", "test")
    )
    if max(own, test) > _UNLIKE * min(own, test):
        log.warning(
            "target %s: its rows have %.0f supervised tokens on average, its test rows %.0f; what "
            "suits one may not help with the other",
            *(target, own, test),
        )


def _log_rows(stage: str, receipt: dict[str, Any]) -> None:
    log.info(
        "%s: %d rows, %d rejected, %d truncated, %d tokens",
        stage,
        *(receipt[key] for key in ("rows", "rejected", "truncated", "tokens")),
    )
    if receipt["altered"]:
        log.warning(
            "%s: in %d rows the model's chat template leaves out or changes a part of a message "
            "(reasoning, mostly); docs/templates.md says what is trained on",
            *(stage, receipt["altered"]),
        )


@functools.cache  # once
def _warn_of_plain(model: str) -> None:
    log.warning(
        "model %s: its tokenizer has no chat template, so a plain one is used: <|user|> and "
        "<|assistant|> as text, each on a line before the message",
        model,
    )


@functools.cache  # once
def _warn_of_code(model: str) -> None:
    log.warning("model %s: Python code that comes with it will be run (trust_remote_code)", model)


def pool_settings(session: Session) -> tuple[ModelSettings, ReadSettings, SeedSettings]:
    """Model, reading and seed settings in force, as the pool was read with."""
    model = session.settings(ModelSettings, "pool")
    if model.trust_remote_code:
        _warn_of_code(model.model)
    if Path(model.model).is_dir():  # workers run in another folder
        model = dataclasses.replace(model, model=str(Path(model.model).resolve()))
    _require_same(session, model)
    return (
        model,
        session.settings(ReadSettings, "pool"),
        session.settings(SeedSettings, "pool"),
    )


def _require_same(session: Session, model: ModelSettings) -> None:
    """Refuse another model than the pool was read with: its tokens would be others."""
    known = session.workspace.stages()
    if POOL not in known or not session.workspace.names(POOL):
        return
    settings = {**known[POOL]["settings"], "model": model.model}
    arguments = {**known[POOL]["arguments"], "model": model.model}
    session.begin(POOL, facts=settings, remember=arguments, grown="keep")
