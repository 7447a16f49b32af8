"""The workspace: what is on disk, what made it, and what is done.

A directory or any fsspec URL. A stage owns one folder, whose path is also the stage's
name: `pool`, `warmup`, `gradients`, `graph/centered`, `targets/T`, `selections/T`, …
`workspace.json` records the settings that made each. A piece of work ends with a receipt
holding the checksums of its files; a piece without a valid receipt is not done.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from g2is_ray.errors import MissingError, StorageError, WorkspaceError
from g2is_ray.workspace.index import INDEX, Index
from g2is_ray.workspace.records import (
    Receipt,
    Record,
    grown_inputs,
    lineage,
    make_record,
    other_inputs,
    other_setting,
    past,
    read_alike,
)
from g2is_ray.workspace.storage import Storage

log = logging.getLogger(__name__)

STAGE_RECEIPT = "receipt"

Growth = Literal["refuse", "extend", "keep", "redo"]
"""What becomes of a stage whose inputs have grown since it was made."""


def part_name(part: int) -> str:
    """File stem of a part: part-00012."""
    return f"part-{part:05d}"


class Workspace(Storage):
    """Files, stage records and receipts below one root; cheap to make and to pickle."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.index = Index(self)

    # ---- receipts ------------------------------------------------------------

    def commit(
        self, stage: str, name: str, files: Mapping[str, bytes], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write `files` into the stage's folder and, last, the receipt `name`.json.

        Returns:
            The receipt: `facts`, and of each file size, SHA-256 and the store's tag.
        """
        held: dict[str, dict[str, Any]] = {}
        for file, data in files.items():
            self.write_bytes(f"{stage}/{file}", data)
            held[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            if tag := self.tag(f"{stage}/{file}"):
                held[file]["tag"] = tag
        receipt = {**facts, "files": held}
        self.write_json(f"{stage}/{name}.json", receipt)
        return receipt

    def commit_once(
        self, stage: str, name: str, files: Mapping[str, bytes], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """As `commit`, but a piece that another worker has done meanwhile stays as it is."""
        return self.receipt(stage, name) or self.commit(stage, name, files, facts)

    def receipt(self, stage: str, name: str = STAGE_RECEIPT) -> Receipt | None:
        """The receipt `name` if its files are all there, whole and unaltered; else None.

        A stage of parts is done if those are: see `finished`.
        """
        try:
            receipt = self.read_receipt(stage, name)
            whole = all(self._is_whole(f"{stage}/{f}", h) for f, h in receipt["files"].items())
        except StorageError:  # which says nothing about the piece
            raise
        except WorkspaceError:
            return None
        return receipt if whole else None

    def read_receipt(self, stage: str, name: str = STAGE_RECEIPT) -> Receipt:
        """The receipt `name`, without a look at its files.

        Raises:
            MissingError: there is none.
            WorkspaceError: it is damaged.
        """
        path = f"{stage}/{name}.json"
        return Receipt(self.read_json(path), self.location(path))

    def _is_whole(self, path: str, held: Mapping[str, Any]) -> bool:
        # An object store changes an object's tag with its content, so nothing need be read.
        # Copied elsewhere, an object may have another tag, or none.
        if "tag" in held and self.tag(path) == held["tag"]:
            return True
        data = self.read_bytes(path)
        same = hashlib.sha256(data).hexdigest() == held["sha256"]
        return same and len(data) == held["bytes"]

    def piece(self, stage: str, name: str) -> Receipt:
        """The receipt `name`, whose piece must be done.

        Raises:
            WorkspaceError: it is not, or its files are damaged.
        """
        receipt = self.receipt(stage, name)
        if receipt is None:
            raise self.damaged(f"{stage}/{name}.json")
        return receipt

    def held(self, stage: str, name: str, file: str) -> dict[str, Any]:
        """What the receipt `name` says of a file: `bytes`, `sha256`, and the store's `tag`."""
        files = self.read_receipt(stage, name)["files"]
        if file not in files:
            raise self.damaged(f"{stage}/{name}.json")
        return dict(files[file])

    def finished(self, stage: str) -> Receipt | None:
        """The stage's receipt if it and all of its parts are whole and unaltered; else None."""
        receipt = self.receipt(stage)
        if receipt is None or not all(
            self.receipt(stage, part_name(part)) for part in range(receipt.get("parts", 0))
        ):
            return None
        return receipt

    def conclude(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Say that all pieces of `stage` are done, unless the same is said already."""
        receipt = {**facts, "files": {}}
        with contextlib.suppress(MissingError):
            if self.read_receipt(stage) == receipt:
                return
        self.write_json(f"{stage}/{STAGE_RECEIPT}.json", receipt)

    def require(self, stage: str, command: str) -> Receipt:
        """The receipt of a finished stage, without checking its files again.

        Raises:
            WorkspaceError: the stage is not finished; names the `command` that does it.
        """
        try:
            return self.read_receipt(stage)
        except MissingError:
            raise WorkspaceError(
                f"{self.url} has no finished {stage} yet; run `g2is {command} --workspace "
                f"{self.url}` first"
            ) from None

    def require_current(self, stage: str, command: str) -> Receipt:
        """As `require`, of a stage that is of all that its inputs hold by now.

        Raises:
            WorkspaceError: the stage is not finished, or an input has grown since it was made;
                names the `command` that does it.
        """
        receipt = self.require(stage, command)
        for name in self.outgrown(stage):
            raise WorkspaceError(
                f"{name} has grown since {stage} was made; run `g2is {command} --workspace "
                f"{self.url}` first"
            )
        return receipt

    # ---- stage records ---------------------------------------------------------

    def stages(self) -> dict[str, dict[str, Any]]:
        """Record of each stage that was begun: `settings`, `inputs`, `fingerprint`."""
        return self.index.stages()

    def fingerprint(self, stage: str) -> str:
        """Of what made a stage, which must be known.

        Raises:
            WorkspaceError: it is not.
        """
        return _fingerprint(self.stages(), stage)

    def outgrown(self, stage: str) -> list[str]:
        """Inputs of the stage that have grown since it was made."""
        known = self.stages()
        return grown_inputs(known.get(stage), known)

    def begin(
        self,
        stage: str,
        settings: Mapping[str, Any],
        inputs: Sequence[str] = (),
        arguments: Mapping[str, Any] | None = None,
        *,
        grown: Growth = "refuse",
        remedies: Mapping[str, str] | None = None,
        recompute: Callable[[Sequence[str]], str] | None = None,
    ) -> str:
        """Record what makes `stage`, or check that it is what made what lies there.

        What is to be remembered is recorded in both cases.

        Args:
            stage: the stage's folder.
            settings: everything that changes what the stage writes.
            inputs: stages that it reads.
            arguments: values to remember that do not change what is written.
            grown: if inputs have grown since the stage was made, refuse it; extend it, which
                leaves it unfinished; keep it as it is; or remove it, to be made anew.
            remedies: by setting, what else to do where that differs.
            recompute: gives the command that recomputes stages, and all made from them.

        Returns:
            The stage's fingerprint. What stages have grown from is remembered, so that a
            stage made of a smaller pool is told from one made of another pool.

        Raises:
            WorkspaceError: the folder was made with other settings or inputs, or with nobody
                knows which.
        """
        known = self.index.stages()
        read = {name: _fingerprint(known, name) for name in inputs}
        record = make_record(settings, read, arguments or {})
        earlier = known.get(stage)
        if self.names(stage):
            if earlier is None:
                raise WorkspaceError(
                    f"{self.location(stage)} holds files, but {INDEX} does not say what made "
                    f"them: {self._remedy([stage], recompute)}"
                )
            if record["fingerprint"] in (earlier["fingerprint"], *past(earlier)):
                if arguments is not None and earlier["arguments"] != record["arguments"]:
                    self.index.change({stage: {**earlier, "arguments": record["arguments"]}})
                return str(earlier["fingerprint"])
            if differs := self._difference(stage, known, record, grown=grown != "refuse"):
                setting, sentence, stages = differs
                other = (remedies or {}).get(setting)
                first = f"{other}, or " if other else ""
                raise WorkspaceError(f"{sentence}: {first}{self._remedy(stages, recompute)}")
            if grown == "keep":
                return str(earlier["fingerprint"])
            if grown == "extend":
                self.remove(f"{stage}/{STAGE_RECEIPT}.json")
            else:
                larger = " and ".join(self.outgrown(stage))
                log.info("%s: made anew, because %s grew", stage, larger)
                self.remove(stage)
        # The record comes last: one that is killed before it finds the same growth again.
        record["grown_from"] = lineage(earlier, record, known)
        self.index.change({stage: record})
        return str(record["fingerprint"])

    def forget(self, stages: Sequence[str]) -> None:
        """Remove the records of stages, and with them what they remember."""
        if stages:
            self.index.change(dict.fromkeys(stages))

    def extend(self, stage: str, settings: Mapping[str, Any]) -> None:
        """Record that a finished stage has grown, and now is what `settings` make.

        A stage without a record gets one. What was made of the stage as it was before is outdated.
        """
        earlier = self.index.stages().get(stage, {"inputs": {}, "arguments": {}})
        record = make_record(settings, earlier["inputs"], earlier["arguments"])
        before = [*past(earlier), earlier.get("fingerprint", record["fingerprint"])]
        record["grown_from"] = [one for one in before if one != record["fingerprint"]]
        if record != earlier:
            self.index.change({stage: record})

    def _remedy(
        self, stages: Sequence[str], recompute: Callable[[Sequence[str]], str] | None
    ) -> str:
        command = (recompute or self._redo_command)(stages)
        what = "it" if len(stages) == 1 else "them"
        return (
            f"run `{command}` to recompute {what} and all that was made from {what}, or use "
            "another workspace"
        )

    def _redo_command(self, stages: Sequence[str]) -> str:
        return shlex.join(["g2is", "run", "--redo", *stages, "--workspace", self.url])

    def _difference(
        self, stage: str, known: Mapping[str, Record], now: Record, *, grown: bool
    ) -> tuple[str, str, list[str]] | None:
        """How a stage's record differs from what it is to be, inputs that `grown` allows aside.

        Returns:
            The setting that differs, if it is one; a sentence; and the stages to recompute.
        """
        earlier = known[stage]
        if other := other_setting(earlier, now):
            name, was, wanted = other
            sentence = f"{stage} was made with {name} {was}, now it is {wanted}"
            return name, sentence, [stage, *read_alike(stage, name, known)]
        for name in other_inputs(earlier, now):
            if not grown or name not in grown_inputs(earlier, known):
                return "", f"{stage} was made from another {name}", [stage]
        return None


def _fingerprint(known: Mapping[str, Record], stage: str) -> str:
    if stage not in known:
        raise WorkspaceError(f"{INDEX} does not say what made {stage}; use another workspace")
    return str(known[stage]["fingerprint"])
