"""What a model is: its files, wherever they lie and whatever the folder is called."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import hf_hub_download

from g2is_ray.workspace.digests import file_digest

_COUNT = (
    *("config.json", "generation_config.json", "adapter_config.json", "*.index.json"),
    *("*.safetensors", "*.bin", "*.py"),
    *("tokenizer*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
    *("chat_template*", "*.jinja", "*.model", "*.tiktoken", "*.spm"),
)
"""Files of a model's folder that transformers may read."""

_DO_NOT = ("training_args.bin", "optimizer*.bin")
_TEMPLATES = "additional_chat_templates"


def model_identity(model: str) -> str:
    """What tells a model from any other, and from itself before its files were changed.

    Returns:
        For a local folder the hash of all files that count; for a name on the hub that name with
        the commit that is loaded, or the name alone where neither hub nor cache knows it.

    Raises:
        OSError: a file of the folder cannot be read.
    """
    if not Path(model).is_dir():
        commit = _commit(model)
        return f"{model}@{commit}" if commit else model
    whole = hashlib.sha256()
    for name, file in _files(Path(model)):
        whole.update(f"{name}\0{file_digest(file)}\n".encode("utf-8", "surrogateescape"))
    return f"sha256:{whole.hexdigest()[:32]}"


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names within the folder, and files, in the order of names."""
    own = {file.name: file for file in folder.iterdir() if _counts(file.name)}
    own |= {f"{_TEMPLATES}/{file.name}": file for file in folder.glob(f"{_TEMPLATES}/*.jinja")}
    yield from ((name, own[name]) for name in sorted(own) if own[name].is_file())


def _counts(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, one) for one in _COUNT) and not any(
        fnmatch.fnmatchcase(name, one) for one in _DO_NOT
    )


@functools.cache  # the hub is asked once in a process, as for loading
def _commit(name: str) -> str:
    """Commit of the snapshot that the hub's own cache gives, after asking the hub if it can."""
    try:
        config = Path(hf_hub_download(name, "config.json"))
    except Exception:  # the hub has many kinds; loading the model will say what is wrong
        return ""
    return config.parent.name if config.parent.parent.name == "snapshots" else ""
