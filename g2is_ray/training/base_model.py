"""Checks that an adapter's base model is the workspace's model, by name and by content."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g2is_ray.errors import InputError

_CACHED = re.compile(r"models--([^/]+)/snapshots/([0-9a-f]+)")  # paths in the hub's local cache
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def require_same(file: Path, adapter: Mapping[str, Any], model: str, config: Any) -> None:
    """Refuse an adapter whose configuration names another base model.

    Folders are compared by their weights. A name is compared by its last part, because mirrors
    and local copies keep that part; other differences show in the loss on a few rows
    (`imported.measure`).

    Args:
        file: the adapter's configuration file, for the message.
        adapter: content of `file`.
        model: the workspace's model: a name, or a local folder.
        config: configuration of `model`, as transformers loads it.

    Raises:
        InputError: names both models.
    """
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        return
    if Path(base).is_dir() and Path(model).is_dir():
        if not _same_weights(Path(base), Path(model)):
            raise _refusal(file, base, model, "with different weights")
        return
    if _last_part(base) != _last_part(model):
        raise _refusal(file, base, model, "")
    _require_revision(file, adapter.get("revision"), model, config)


def _refusal(file: Path, base: str, model: str, which: str) -> InputError:
    return InputError(
        f"{file}: the adapter was trained on {base}, but the model here is {model}"
        + (f", {which}" if which else "")
        + f"; give the model that the adapter was trained on, or, if {model} has the same weights, "
        "write that name as base_model_name_or_path"
    )


def _last_part(name: str) -> str:
    cached = _CACHED.search(name)
    whole = cached[1].replace("--", "/") if cached else name
    return whole.rstrip("/").rsplit("/", 1)[-1].casefold()


def _require_revision(file: Path, revision: Any, model: str, config: Any) -> None:
    """Refuse a model that is not known to be of the adapter's revision, unless that is `main`."""
    if not revision or revision == "main":
        return
    cached = _CACHED.search(model)
    ours = cached[2] if cached else getattr(config, "_commit_hash", None)
    if Path(model).is_dir() and not cached:  # a copy, whose revision is unknown
        return
    if not ours or not str(ours).startswith(str(revision)):
        raise InputError(
            f"{file}: the adapter was trained on revision {revision}, but the model here is "
            f"{model} at {ours or 'its main revision'}; download revision {revision}, and give its "
            "folder as model"
        )


def _same_weights(one: Path, other: Path) -> bool:
    """Return whether two model folders hold the same weight files, byte for byte."""
    if one.resolve() == other.resolve():
        return True
    first, second = (
        {file.name: file for pattern in _WEIGHTS for file in folder.glob(pattern)}
        for folder in (one, other)
    )
    if not first and not second:
        return _last_part(str(one)) == _last_part(str(other))
    if first.keys() != second.keys():
        return False
    return all(filecmp.cmp(file, second[name], shallow=False) for name, file in first.items())
