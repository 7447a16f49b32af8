"""The workspace: what is on disk, what made it, and what is done.

A directory or any fsspec URL. A stage owns one folder, whose path is also the stage's
name: `pool`, `warmup`, `gradients`, `graph/centered`, `targets/T`, `selections/T`, …
`workspace.json` records the settings that made each. A piece of work ends with a receipt
holding the checksums of its files; a piece without a valid receipt is not done.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np
from numpy.typing import NDArray

from g2is_ray.errors import SettingError, WorkspaceError
from g2is_ray.records import (
    Record,
    grown_inputs,
    lineage,
    make_record,
    other_inputs,
    other_setting,
    past,
)

log = logging.getLogger(__name__)

FORMAT = 1
STAGE_RECEIPT = "receipt"
_INDEX = "workspace.json"

Growth = Literal["refuse", "extend", "keep", "redo"]
"""What becomes of a stage whose inputs have grown since it was made."""


def part_name(part: int) -> str:
    """File stem of a part: part-00012."""
    return f"part-{part:05d}"


class Workspace:
    """Files, stage records and receipts below one root; cheap to make and to pickle.

    Raises:
        SettingError: the URL's kind of storage is unknown, or needs a package.
    """

    def __init__(self, url: str) -> None:
        self.url = str(url)
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise SettingError(f"{self.url} cannot be opened: {error}") from None
        self.is_local = "file" in self._fs.protocol

    def __reduce__(self) -> tuple[type[Workspace], tuple[str]]:
        return Workspace, (self.url if not self.is_local else self._root,)

    def location(self, path: str) -> str:
        """Absolute path or URL of `path`, as other libraries and users take it."""
        return self._full(path) if self.is_local else f"{self.url.rstrip('/')}/{path}"

    def _full(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}" if path else self._root

    # ---- files ---------------------------------------------------------------

    def exists(self, path: str) -> bool:
        return bool(self._fs.exists(self._full(path)))

    def read_bytes(self, path: str) -> bytes:
        """Content of a file.

        Raises:
            WorkspaceError: there is no such file.
        """
        try:
            return bytes(self._fs.cat_file(self._full(path)))
        except FileNotFoundError:
            raise WorkspaceError(f"{self.location(path)} is missing") from None
        except OSError as error:
            why = error.strerror or error
            raise WorkspaceError(f"{self.location(path)} cannot be read: {why}") from None

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a whole file or nothing: a temporary name and a rename, or one PUT.

        Raises:
            WorkspaceError: the disk is full or the place cannot be written.
        """
        full = self._full(path)
        with self._writing(path):
            if not self.is_local:
                self._fs.pipe_file(full, data)
                return
            target = Path(full)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    @contextlib.contextmanager
    def _writing(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = self.location(path)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise WorkspaceError(
                    f"the disk is full, writing {where}: free some space and give the same "
                    "command again; what is finished is kept"
                ) from None
            raise WorkspaceError(f"{where} cannot be written: {error.strerror or error}") from None

    def read_json(self, path: str) -> Any:
        try:
            return json.loads(self.read_bytes(path))
        except ValueError:
            raise self.damaged(path) from None

    def write_json(self, path: str, value: Any) -> None:
        self.write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def read_array(self, path: str) -> NDArray[Any]:
        try:
            return np.load(io.BytesIO(self.read_bytes(path)), allow_pickle=False)
        except (ValueError, EOFError):
            raise self.damaged(path) from None

    def map_array(self, path: str) -> NDArray[Any]:
        """The array of a `.npy` file, read from disk as it is used; read-only.

        A remote file is copied to a temporary one that goes with the array.
        """
        if self.is_local:
            return self._mapped(path, self._full(path))
        with tempfile.NamedTemporaryFile(suffix=".npy") as copy:
            try:
                self._fs.get_file(self._full(path), copy.name)
            except FileNotFoundError:
                raise WorkspaceError(f"{self.location(path)} is missing") from None
            return self._mapped(path, copy.name)  # a mapping outlives its file's name

    def _mapped(self, path: str, file: str) -> NDArray[Any]:
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise WorkspaceError(f"{self.location(path)} is missing") from None
        except (ValueError, EOFError):
            raise self.damaged(path) from None

    def damaged(self, path: str) -> WorkspaceError:
        """What to raise where a file of the workspace does not hold what was written."""
        return WorkspaceError(
            f"{self.location(path)} is damaged; give the command that made it again"
        )

    def names(self, folder: str) -> list[str]:
        """Sorted names of what lies directly in `folder`; empty if there is no such folder."""
        try:
            listed = self._fs.ls(self._full(folder), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in listed)

    def download(self, folder: str, to: Path) -> Path:
        """A local folder with the files of `folder`: itself, or a copy in `to`."""
        if self.is_local:
            return Path(self._full(folder))
        self._fs.get(self._full(folder) + "/", str(to) + "/", recursive=True)
        return to

    def remove(self, folder: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._full(folder), recursive=True)

    # ---- receipts ------------------------------------------------------------

    def commit(
        self, stage: str, name: str, files: Mapping[str, bytes], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write `files` into the stage's folder and, last, the receipt `name`.json.

        Returns:
            The receipt: `facts`, and size and SHA-256 of each file.
        """
        held = {}
        for file, data in files.items():
            self.write_bytes(f"{stage}/{file}", data)
            held[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        receipt = {**facts, "files": held}
        self.write_json(f"{stage}/{name}.json", receipt)
        return receipt

    def commit_once(
        self, stage: str, name: str, files: Mapping[str, bytes], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """As `commit`, but a piece that another worker has done meanwhile stays as it is."""
        return self.receipt(stage, name) or self.commit(stage, name, files, facts)

    def receipt(self, stage: str, name: str = STAGE_RECEIPT) -> dict[str, Any] | None:
        """The receipt `name` if its files are all there, whole and unaltered; else None.

        A stage of parts is done if those are: see `finished`.
        """
        try:
            receipt = self.read_json(f"{stage}/{name}.json")
            for file, held in receipt["files"].items():
                data = self.read_bytes(f"{stage}/{file}")
                if len(data) != held["bytes"]:
                    return None
                if hashlib.sha256(data).hexdigest() != held["sha256"]:
                    return None
        except (WorkspaceError, KeyError, TypeError, AttributeError):
            return None
        return receipt

    def piece(self, stage: str, name: str) -> dict[str, Any]:
        """The receipt `name`, whose piece must be done.

        Raises:
            WorkspaceError: it is not, or its files are damaged.
        """
        receipt = self.receipt(stage, name)
        if receipt is None:
            raise self.damaged(f"{stage}/{name}.json")
        return receipt

    def finished(self, stage: str) -> dict[str, Any] | None:
        """The stage's receipt if it and all of its parts are whole and unaltered; else None."""
        receipt = self.receipt(stage)
        if receipt is None or not all(
            self.receipt(stage, part_name(part)) for part in range(receipt.get("parts", 0))
        ):
            return None
        return receipt

    def conclude(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Say that all pieces of `stage` are done, unless the same is said already."""
        path = f"{stage}/{STAGE_RECEIPT}.json"
        receipt = {**facts, "files": {}}
        if not self.exists(path) or self.read_json(path) != receipt:
            self.write_json(path, receipt)

    def require(self, stage: str, command: str) -> dict[str, Any]:
        """The receipt of a finished stage, without checking its files again.

        Raises:
            WorkspaceError: the stage is not finished; names the `command` that does it.
        """
        if not self.exists(f"{stage}/{STAGE_RECEIPT}.json"):
            raise WorkspaceError(
                f"{self.url} has no finished {stage} yet; run `g2is {command} --workspace "
                f"{self.url}` first"
            )
        return self.read_json(f"{stage}/{STAGE_RECEIPT}.json")

    def require_current(self, stage: str, command: str) -> dict[str, Any]:
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

    def _index(self) -> dict[str, Any]:
        if not self.exists(_INDEX):
            return {"format": FORMAT, "stages": {}}
        try:
            index = self.read_json(_INDEX)
        except WorkspaceError:
            raise WorkspaceError(
                f"{self.location(_INDEX)} is damaged, so it does not say what made the rest: "
                "restore it, or use another workspace"
            ) from None
        if not isinstance(index, dict) or "stages" not in index or index.get("format") != FORMAT:
            raise WorkspaceError(
                f"{self.location(_INDEX)} is not of format {FORMAT}; use another workspace"
            )
        return index

    def stages(self) -> dict[str, dict[str, Any]]:
        """Record of each stage that was begun: `settings`, `inputs`, `fingerprint`."""
        return self._index()["stages"]

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
    ) -> str:
        """Record what makes `stage`, or check that it is what made what lies there.

        Args:
            stage: the stage's folder.
            settings: everything that changes what the stage writes.
            inputs: stages that it reads.
            arguments: values to remember that do not change what is written.
            grown: if inputs have grown since the stage was made, refuse it; extend it, which
                leaves it unfinished; keep it as it is; or remove it, to be made anew.
            remedies: by setting, what else to do where that differs.

        Returns:
            The stage's fingerprint. What stages have grown from is remembered, so that a
            stage made of a smaller pool is told from one made of another pool.

        Raises:
            WorkspaceError: the folder was made with other settings or inputs, or with nobody
                knows which.
        """
        index = self._index()
        known = index["stages"]
        read = {name: known[name]["fingerprint"] for name in inputs}
        record = make_record(settings, read, arguments or {})
        earlier = known.get(stage)
        if self.names(stage):
            if earlier is None:
                raise WorkspaceError(
                    f"{self.location(stage)} holds files, but {_INDEX} does not say what made "
                    "them: use another workspace, or remove them to make them anew"
                )
            if record["fingerprint"] in (earlier["fingerprint"], *past(earlier)):
                return str(earlier["fingerprint"])
            self._compare(stage, earlier, record, remedies or {}, grown=grown != "refuse")
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
        known[stage] = record
        self.write_json(_INDEX, index)
        return str(record["fingerprint"])

    def extend(self, stage: str, settings: Mapping[str, Any]) -> None:
        """Record that a finished stage has grown, and now is what `settings` make."""
        index = self._index()
        earlier = index["stages"][stage]
        record = make_record(settings, earlier["inputs"], earlier["arguments"])
        record["grown_from"] = [*past(earlier), earlier["fingerprint"]]
        index["stages"][stage] = record
        self.write_json(_INDEX, index)

    def _compare(
        self, stage: str, earlier: Record, now: Record, remedies: Mapping[str, str], *, grown: bool
    ) -> None:
        """Refuse other settings, and other inputs but those that have only `grown`."""
        remedy = f"use another workspace, or remove {self.location(stage)} to make it anew"
        if other := other_setting(earlier, now):
            name, was, wanted = other
            first = f"{remedies[name]}, " if name in remedies else ""
            raise WorkspaceError(
                f"{stage} was made with {name} {was}, now it is {wanted}: {first}{remedy}"
            )
        for name in other_inputs(earlier, now):
            if not grown or name not in self.outgrown(stage):
                raise WorkspaceError(f"{stage} was made from another {name}: {remedy}")


def array_bytes(array: NDArray[Any]) -> bytes:
    """The array as the content of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
