"""Sources: files behind paths, globs, directories and URLs, and the identity of their content.

Local files, s3://, gs://, https:// and memory:// all go through fsspec.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import has_magic

from g2is_ray.errors import InputError, one_line
from g2is_ray.workspace.digests import file_digest
from g2is_ray.workspace.remote import open_url, reason

log = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow")
READABLE = "*.jsonl, *.ndjson, *.json (each also .gz, .zst or .bz2), *.parquet and *.arrow"
HUB = re.compile(
    r"hf://(?P<name>(?:[\w.-]+/)?[\w.-]+)(?:(?::(?P<config>[\w.+-]+))?:(?P<split>[\w.-]+))?"
)
_COMPRESSIONS = (".gz", ".zst", ".bz2")
_TABLES = (".parquet", ".arrow")  # need seeking, so outer compression is not supported

_METADATA = re.compile(
    r"(dataset_infos?|dataset_dict|state|dataset-metadata)\.json|"
    r"(generation_|tokenizer_|special_tokens_)?(config|map|metadata|croissant|package)\.json|"
    r"cache-[^/]*\.arrow"  # results that `datasets` computed from the rows
)
_UNREAD = (".csv", ".tsv", ".xlsx", ".feather", ".zip", ".tar", ".xz", ".tgz", ".7z")
_HELD_OUT = {"test", "tests", "testing", "validation", "valid", "val", "dev", "eval", "heldout"}
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def expand(sources: Sequence[str]) -> list[str]:
    """Files behind paths, globs, directories and URLs; sorted, each once.

    Directories are searched to any depth for files with readable suffixes, except for names that
    start with a dot and metadata files such as dataset_info.json. Relative local paths stay
    relative. `hf://org/name[[:config]:split]` stays unchanged.

    Raises:
        InputError: a source does not exist or has no readable file.
    """
    found: dict[str, str] = {}  # by absolute address, so that ./a and a are one file
    for source in sources:
        if not source:  # an unset shell variable; fsspec would take the current directory
            raise InputError("a source is an empty string; give a path or URL")
        if HUB.fullmatch(source):
            found[source] = source
            continue
        for address, name in _expand_one(source):
            found.setdefault(address, name)
    return sorted(found.values())


def _expand_one(source: str) -> Iterator[tuple[str, str]]:
    try:
        fs, path = open_url(source)
        paths, searched = _search(fs, path)
    except FileNotFoundError:
        raise InputError(f"{source}: no such file or directory; check the path") from None
    except Exception as error:  # storage libraries raise various errors
        raise InputError(f"{source}: cannot be opened ({why(error, source)})") from error
    if searched:
        paths = _without_metadata(source, paths)
    readable = [found for found in paths if container(found)[1] in SUFFIXES]
    if not readable:
        what = "matches no readable file" if searched else "is not a readable file"
        raise InputError(f"{source}: {what}; readable are {READABLE}{_remedy(paths)}")
    chained = source.partition("::")[2]
    for found in readable:
        if _UNSHOWN.search(found):
            raise InputError(
                f"{found!a}: the name is not UTF-8 or has control characters; rename it"
            )
        address = fs.unstrip_protocol(found) + (f"::{chained}" if chained else "")
        if "://" in source or chained:
            yield address, address
        else:
            yield address, found if Path(source).is_absolute() else os.path.relpath(found)


def _search(fs: Any, path: str) -> tuple[list[str], bool]:
    """Paths of files, and whether they come from a directory or glob."""
    try:
        kind = fs.info(path)["type"]
    except FileNotFoundError:
        if not has_magic(path):
            raise
        matches = fs.glob(path)
        if not matches and "[" in path:  # the brackets may be part of the name
            matches = fs.glob(path.replace("[", "[[]"))
        return [found for found in matches if fs.isfile(found)], True
    if kind != "directory":
        return [path], False
    root = path.rstrip("/") + "/"
    inside = [found for found in fs.find(path) if "/." not in "/" + found.removeprefix(root)]
    return inside, True


def _without_metadata(source: str, paths: list[str]) -> list[str]:
    """The files without metadata files; logs the skipped files."""
    kept = [path for path in paths if not _METADATA.fullmatch(path.rpartition("/")[2])]
    unread = [path for path in kept if path.lower().endswith(_UNREAD)]
    if len(kept) < len(paths):
        log.info("%s: skipping %d metadata files", source, len(paths) - len(kept))
    if unread and len(unread) < len(kept):
        log.warning(
            "%s: skipping %d files in unsupported formats, such as %s",
            *(source, len(unread), unread[0]),
        )
    return kept


def _remedy(paths: Sequence[str]) -> str:
    if not any(path.lower().endswith((".csv", ".tsv")) for path in paths):
        return ""
    return (
        '; convert CSV with python -c "import csv, json, sys; '
        '[print(json.dumps(row)) for row in csv.DictReader(sys.stdin)]" < FILE.csv > FILE.jsonl'
    )


def held_out(files: Sequence[str]) -> list[str]:
    """The files whose name, folder or split looks like test or validation rows."""
    return [file for file in files if _is_held_out(file)]


def _is_held_out(file: str) -> bool:
    hub = HUB.fullmatch(file)
    if hub:
        return not _HELD_OUT.isdisjoint(_words(hub["split"] or ""))
    folder, _, name = file.partition("::")[0].rpartition("/")
    inside = folder.rpartition("/")[2].lower()
    return inside in _HELD_OUT or not _HELD_OUT.isdisjoint(_words(container(name)[0]))


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z]+", name.lower())


def describe(file: str) -> dict[str, Any]:
    """A description of a file that changes with its content.

    Returns:
        `name` (without folders), `size` in bytes, and `sha256` of the content. For a remote file
        whose store has a tag of the content, `tag` replaces `sha256`. For hub datasets, only
        `name`.

    Raises:
        InputError: the file cannot be read, or changes while it is read.
    """
    if HUB.fullmatch(file):
        return {"name": file}
    try:
        fs, path = open_url(file)
        fs.invalidate_cache()  # a listing may be older than the file
        described = {"name": path.rsplit("/", 1)[-1], "size": fs.size(path)}
        if "file" in fs.protocol:
            return described | {"sha256": file_digest(Path(path))}
        if tag := content_tag(fs.info(path)):
            return described | {"tag": tag}
        with fs.open(path, "rb") as stream:
            return described | {"sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    except InputError:
        raise
    except Exception as error:  # storage libraries raise various errors
        raise InputError(f"{file}: cannot be read ({why(error, file)}); check the path") from error


def content_tag(info: Mapping[str, Any]) -> str | None:
    """The tag in fsspec's `info` of a file that changes with its content; None if it has none."""
    for name in ("md5Hash", "content_md5", "ETag", "etag", "generation"):
        value = str(info.get(name) or "")
        if value and not value.startswith("W/"):  # a weak ETag may stay
            return f"{name} {value}"
    return None


def container(file: str) -> tuple[str, str, str]:
    """Stem, suffix and compression of a file: `a/pool.jsonl.gz` is ("pool", ".jsonl", ".gz")."""
    hub = HUB.fullmatch(file)
    if hub:
        return hub["name"].rsplit("/", 1)[-1], "", ""
    name = file.partition("::")[0]
    if name.startswith(("http://", "https://")):
        name = name.partition("?")[0]
    path, compression = PurePosixPath(name), ""
    if path.suffix.lower() in _COMPRESSIONS:
        path, compression = PurePosixPath(path.stem), path.suffix.lower()
    suffix = path.suffix.lower()
    if suffix in _TABLES and compression:
        suffix = ""
    return path.stem, suffix, compression


def is_remote(file: str) -> bool:
    """Whether a file is read through a storage library, which may raise any error."""
    return "://" in file


def why(error: BaseException, file: str) -> str:
    """The reason why a file cannot be opened or read, on one line."""
    return clip(reason(error, file) if is_remote(file) else one_line(error))


def clip(text: str, characters: int = 300) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
