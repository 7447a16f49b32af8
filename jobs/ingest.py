"""Read pool and targets into the workspace."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Literal

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
from g2is_ray.workspace.layout import POOL, target_stage, targets_in
from g2is_ray.workspace.workspace import Workspace
from jobs.model import check_base, model_limits
from jobs.overlap import find_overlap
from jobs.session import Session, identified

log = logging.getLogger(__name__)

_UNLIKE = 4  # times as many supervised tokens a row


def ingest(session: Session) -> None:
    """Write the pool and every given target as example sets."""
    pool = session.settings(PoolSettings)
    targets = session.settings(TargetSettings)
    for name in targets.test:
        known = session.workspace.storage.exists(target_stage(name, "val"))
        if name not in targets.target and not known:
            raise SettingError(f"test {name} has no target of that name; give --target {name}=FILE")
    own, test = (
        _removed(session, "val") | targets.target,
        _removed(session, "test") | targets.test,
    )
    # A missing file is refused before the model is loaded.
    pool_files = expand(pool.pool) if "pool" in session.given else list(pool.pool)
    own_files, test_files = ({n: expand([file]) for n, file in one.items()} for one in (own, test))
    model, read, _ = pool_settings(session)
    tokenizer = loading.load_tokenizer(model)
    if not session.workspace.stage(POOL).finished():
        check_base(model, read.max_tokens)
    remember = as_dict(pool)
    del remember["append"]  # it is asked for once
    _read(session, tokenizer, POOL, pool_files, schema=pool.format, remember=remember)
    if pool.append:
        _append(session, tokenizer, list(pool.append), pool.format)
    for name, file in own.items():
        _read(
            session,
            tokenizer,
            target_stage(name, "val"),
            own_files[name],
            max_rows=targets.max_target_rows,
            remember={"target": {name: file}, "max_target_rows": targets.max_target_rows},
        )
    for name, file in test.items():
        remember = {"test": {name: file}}
        _read(session, tokenizer, target_stage(name, "test"), test_files[name], remember=remember)
        _warn_of_unlike(session.workspace, name)
    find_overlap(session.workspace)


def _removed(session: Session, kind: Literal["val", "test"]) -> dict[str, str]:
    """Files of the targets whose rows were removed to be read again, as they are remembered."""
    workspace = session.workspace
    return {
        target: session.sources([stage])[0]
        for target in targets_in(workspace)
        if (stage := target_stage(target, kind)) in workspace.stages()
        and not workspace.storage.names(stage)
        and session.sources([stage])
    }


def _read(
    session: Session,
    tokenizer: PreTrainedTokenizerBase,
    stage: str,
    files: list[str],
    *,
    schema: str = "auto",
    max_rows: int | None = None,
    remember: dict[str, Any],
) -> None:
    workspace = session.workspace
    model, read, seed = pool_settings(session)
    if not model.template_date and asks_for_date(tokenizer):
        model = dataclasses.replace(model, template_date=today())
    if stage == POOL and "pool" not in session.given:
        if workspace.stage(
            POOL
        ).finished():  # its files are not read again, but its tokens must not change
            known = workspace.stages()[POOL]
            template = {"template": identity(tokenizer)}
            workspace.stage(POOL).begin(known["settings"] | template, arguments=known["arguments"])
            return
        files = expand(files)
    decides = _decides(tokenizer, model, read, schema) | {"files": [describe(f) for f in files]}
    if stage == POOL:
        _warn_of_held_out(files)
    remembered = as_dict(read, model, seed) | remember
    remedies = {"files": "add files with --append"} if stage == POOL else {}
    session.begin(stage, facts=decides, remember=remembered, remedies=remedies)
    if workspace.stage(stage).finished():
        log.info("%s: already done", stage)
        return
    encoder = _encoder(tokenizer, model, read)
    receipt = write_examples(
        workspace, stage, files, encoder, read, schema=schema, max_rows=max_rows
    )
    _log_rows(stage, receipt)
    if (
        receipt.get("appends")
        and "append" not in session.given
        and not workspace.stage(stage).finished()
    ):
        raise WorkspaceError(
            f"{workspace.storage.location(stage)}: a part of appended files is damaged; give the "
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
    held = workspace.stages()[POOL]["settings"]["files"]
    remembered = workspace.stages()[POOL]["arguments"]
    session.begin(POOL, facts=decides | {"files": held}, remember=remembered)  # refuses others
    known = [_content(one) for one in held]
    files = expand(sources)
    _warn_of_held_out(files)
    described = {file: describe(file) for file in files}
    new = [file for file in files if _content(described[file]) not in known]
    asked = [described[file] for file in new or files]
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    pool = workspace.stage(POOL).require()
    if not new and (name not in pool.get("appends", {}) or workspace.stage(POOL).finished()):
        log.info("pool: has all rows of %s already", ", ".join(files))
        return
    encoder = _encoder(tokenizer, model, read)
    receipt = write_examples(
        workspace, POOL, new or files, encoder, read, schema=schema, append=name
    )
    if new:
        workspace.stage(POOL).extend(identified(decides) | {"files": held + asked})
    log.info("pool: %d rows more", receipt["rows"] - pool["rows"])
    _log_rows(POOL, receipt)


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
        ExampleSet(workspace, stage).supervised_tokens().mean()
        for stage in (target_stage(target, "val"), target_stage(target, "test"))
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
    model = session.settings(ModelSettings)
    if model.trust_remote_code:
        _warn_of_code(model.model)
    if Path(model.model).is_dir():  # workers run in another folder
        model = dataclasses.replace(model, model=str(Path(model.model).resolve()))
    _require_same(session, model)
    return (
        model,
        session.settings(ReadSettings),
        session.settings(SeedSettings),
    )


def _require_same(session: Session, model: ModelSettings) -> None:
    """Refuse another model than the pool was read with: its tokens would be others."""
    record = session.workspace.stages().get(POOL)
    if record is None or not session.workspace.storage.names(POOL):
        return
    settings = {**record["settings"], "model": model.model}
    arguments = {**record["arguments"], "model": model.model}
    in_place = model.model == record["arguments"].get("model")
    if in_place and identified(settings)["model"] != record["settings"].get("model"):
        settings["template"] = identity(loading.load_tokenizer(model))  # for the refusal to name
    session.begin(POOL, facts=settings, remember=arguments, grown="keep")
