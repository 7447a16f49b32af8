"""A stage of a workspace: one folder, the record of what made it, and its receipts.

A stage is done in pieces, such as its parts. A piece ends with a receipt that holds the checksums
of the piece's files, so a piece without a valid receipt is not done. The receipt named `receipt` is
the stage's own and comes last.
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
from g2is_ray.workspace.layout import command_of
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
"""What happens to a stage whose inputs have grown since it was made: refuse it; extend it, which
leaves it unfinished; keep it as it is; or remove it, to be recomputed."""


def part_name(part: int) -> str:
    """File stem of a part: part-00012."""
    return f"part-{part:05d}"


class Stage:
    """A stage by its name, which is also its folder. Cheap to make; the stage need not exist."""

    def __init__(self, name: str, storage: Storage, index: Index) -> None:
        self.name = name
        self._storage = storage
        self._index = index

    def path(self, file: str) -> str:
        """Path of a file of the stage in the workspace's storage."""
        return f"{self.name}/{file}"

    # ---- receipts ------------------------------------------------------------

    def commit(
        self, piece: str, files: Mapping[str, bytes], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write `files` into the stage's folder and, last, the receipt of the piece.

        Returns:
            The receipt: `facts`, and the size, SHA-256 and storage tag of each file.
        """
        held: dict[str, dict[str, Any]] = {}
        for file, data in files.items():
            self._storage.write_bytes(self.path(file), data)
            held[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            if tag := self._storage.tag(self.path(file)):
                held[file]["tag"] = tag
        receipt = {**facts, "files": held}
        self._storage.write_json(self._receipt_path(piece), receipt)
        return receipt

    def commit_once(
        self, piece: str, files: Mapping[str, bytes], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Commit a piece, unless another worker has done it in the meantime."""
        return self.verified(piece) or self.commit(piece, files, facts)

    def conclude(self, facts: Mapping[str, Any]) -> None:
        """Write the stage's own receipt, which says that all pieces are done, if it differs."""
        receipt = {**facts, "files": {}}
        with contextlib.suppress(MissingError):
            if self.receipt() == receipt:
                return
        self._storage.write_json(self._receipt_path(STAGE_RECEIPT), receipt)

    def receipt(self, piece: str = STAGE_RECEIPT) -> Receipt:
        """The receipt as it was written, without checking the files that it lists.

        Raises:
            MissingError: there is none.
            WorkspaceError: it is damaged.
        """
        path = self._receipt_path(piece)
        return Receipt(self._storage.read_json(path), self._storage.location(path))

    def verified(self, piece: str = STAGE_RECEIPT) -> Receipt | None:
        """The receipt if it and the files that it lists are intact; else None."""
        try:
            receipt = self.receipt(piece)
            intact = all(self._is_intact(file, held) for file, held in receipt["files"].items())
        except StorageError:  # which says nothing about the piece
            raise
        except WorkspaceError:
            return None
        return receipt if intact else None

    def finished(self) -> Receipt | None:
        """The stage's own receipt if it and all of the stage's parts are intact; else None."""
        receipt = self.verified()
        if receipt is None or not all(
            self.verified(part_name(part)) for part in range(receipt.get("parts", 0))
        ):
            return None
        return receipt

    def require(self) -> Receipt:
        """The receipt of a finished stage, without checking its files.

        Raises:
            WorkspaceError: the stage is not finished; names the command that does it.
        """
        try:
            return self.receipt()
        except MissingError:
            raise WorkspaceError(
                f"{self._storage.url} has no finished {self.name} yet; {self._run_first()}"
            ) from None

    def require_current(self) -> Receipt:
        """The receipt of a finished stage that covers all that its inputs hold now.

        Raises:
            WorkspaceError: the stage is not finished, or an input has grown since it was made;
                names the command that does it.
        """
        receipt = self.require()
        for name in self.outgrown():
            raise WorkspaceError(
                f"{name} has grown since {self.name} was made; {self._run_first()}"
            )
        return receipt

    def require_piece(self, piece: str) -> Receipt:
        """The receipt of a piece that is done and intact.

        Raises:
            WorkspaceError: the piece is not done, or damaged.
        """
        receipt = self.verified(piece)
        if receipt is None:
            raise self._storage.damaged(self._receipt_path(piece))
        return receipt

    def _receipt_path(self, piece: str) -> str:
        return self.path(f"{piece}.json")

    def _run_first(self) -> str:
        return f"run `g2is {command_of(self.name)} --workspace {self._storage.url}` first"

    def _is_intact(self, file: str, held: Mapping[str, Any]) -> bool:
        path = self.path(file)
        # An object store changes an object's tag with its content, so the content need not be
        # read. A copied object may have another tag, or none.
        if "tag" in held and self._storage.tag(path) == held["tag"]:
            return True
        data = self._storage.read_bytes(path)
        same = hashlib.sha256(data).hexdigest() == held["sha256"]
        return same and len(data) == held["bytes"]

    # ---- the record ------------------------------------------------------------

    def fingerprint(self) -> str:
        """Fingerprint of what made the stage.

        Raises:
            WorkspaceError: the index has no record of the stage.
        """
        return _fingerprint(self._index.stages(), self.name)

    def outgrown(self) -> list[str]:
        """Inputs of the stage that have grown since it was made."""
        known = self._index.stages()
        return grown_inputs(known.get(self.name), known)

    def begin(
        self,
        settings: Mapping[str, Any],
        inputs: Sequence[str] = (),
        arguments: Mapping[str, Any] | None = None,
        *,
        grown: Growth = "refuse",
        remedies: Mapping[str, str] | None = None,
        recompute: Callable[[Sequence[str]], str] | None = None,
    ) -> str:
        """Record what makes the stage, or check that the files in its folder were made so.

        What is to be remembered is recorded in both cases.

        Args:
            settings: everything that changes what the stage writes.
            inputs: stages that it reads.
            arguments: values to remember that do not change what is written.
            grown: what to do if inputs have grown since the stage was made.
            remedies: by setting, what else to do if that setting differs.
            recompute: gives the command that recomputes stages, and all made from them.

        Returns:
            The stage's fingerprint. Fingerprints that stages had before they grew are remembered,
            so that a stage made from a smaller pool differs from one made from another pool.

        Raises:
            WorkspaceError: the files in the folder were made with other settings or inputs, or
                the index does not say with which.
        """
        known = self._index.stages()
        read = {name: _fingerprint(known, name) for name in inputs}
        record = make_record(settings, read, arguments or {})
        earlier = known.get(self.name)
        if self._storage.names(self.name):
            if earlier is None:
                raise WorkspaceError(
                    f"{self._storage.location(self.name)} holds files, but {INDEX} does not say "
                    f"what made them: {self._remedy([self.name], recompute)}"
                )
            if record["fingerprint"] in (earlier["fingerprint"], *past(earlier)):
                if arguments is not None and earlier["arguments"] != record["arguments"]:
                    self._index.change({self.name: {**earlier, "arguments": record["arguments"]}})
                return str(earlier["fingerprint"])
            if differs := self._difference(known, record, grown=grown != "refuse"):
                setting, sentence, stages = differs
                other = (remedies or {}).get(setting)
                first = f"{other}, or " if other else ""
                raise WorkspaceError(f"{sentence}: {first}{self._remedy(stages, recompute)}")
            if grown == "keep":
                return str(earlier["fingerprint"])
            if grown == "extend":
                self._storage.remove(self._receipt_path(STAGE_RECEIPT))
            else:
                log.info(
                    "%s: recomputing, because %s grew", self.name, " and ".join(self.outgrown())
                )
                self.remove()
        # The record comes last: a command that is killed before it finds the same growth again.
        record["grown_from"] = lineage(earlier, record, known)
        self._index.change({self.name: record})
        return str(record["fingerprint"])

    def extend(self, settings: Mapping[str, Any]) -> None:
        """Record that the finished stage has grown, and now is what `settings` make.

        A stage without a record gets one. All that was made from the smaller stage is outdated.
        """
        earlier = self._index.stages().get(self.name, {"inputs": {}, "arguments": {}})
        record = make_record(settings, earlier["inputs"], earlier["arguments"])
        before = [*past(earlier), earlier.get("fingerprint", record["fingerprint"])]
        record["grown_from"] = [one for one in before if one != record["fingerprint"]]
        if record != earlier:
            self._index.change({self.name: record})

    def remove(self) -> None:
        """Remove the stage's folder; its record stays."""
        self._storage.remove(self.name)

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
        return shlex.join(["g2is", "run", "--redo", *stages, "--workspace", self._storage.url])

    def _difference(
        self, known: Mapping[str, Record], now: Record, *, grown: bool
    ) -> tuple[str, str, list[str]] | None:
        """How the stage's record differs from `now`, except for inputs that `grown` allows.

        Returns:
            The setting that differs, if it is one; a sentence; and the stages to recompute.
        """
        earlier = known[self.name]
        if other := other_setting(earlier, now):
            name, was, wanted = other
            sentence = f"{self.name} was made with {name} {was}, now it is {wanted}"
            return name, sentence, [self.name, *read_alike(self.name, name, known)]
        for name in other_inputs(earlier, now):
            if not grown or name not in grown_inputs(earlier, known):
                return "", f"{self.name} was made from another {name}", [self.name]
        return None


def _fingerprint(known: Mapping[str, Record], stage: str) -> str:
    if stage not in known:
        raise WorkspaceError(f"{INDEX} does not say what made {stage}; use another workspace")
    return str(known[stage]["fingerprint"])
