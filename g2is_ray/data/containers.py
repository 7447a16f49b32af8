"""Containers: the rows of a file in any supported format.

A file's first bytes decide how it is read, because names are often wrong: a browser decompresses
a .gz file, a download of a Git LFS file is a pointer, a login page is saved as .jsonl.
"""

from __future__ import annotations

import bz2
import gzip
import io
import re
import zlib
from typing import Any

import pyarrow as pa

from g2is_ray.data.json_rows import BOM, Rows, array_rows, line_rows
from g2is_ray.data.sources import HUB, READABLE, SUFFIXES, container, is_remote, why
from g2is_ray.data.tables import arrow_rows, parquet_rows
from g2is_ray.errors import InputError, one_line
from g2is_ray.workspace.remote import open_url

# Errors of damaged files, whose column names may not be UTF-8 and whose sizes may be huge.
_BROKEN = (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError, MemoryError)

_PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2"}
_TABLES = {".parquet": "Parquet", ".arrow": "Arrow"}

_UNPACK, _CONVERT = "unpack it", "convert it to JSON lines or Parquet"
_OTHERS: list[tuple[bytes, str, str]] = [
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "run git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, not the file", "run git annex get"),
    (b"PK\x03\x04", "a zip archive", "unpack it, or give zip://NAME::ARCHIVE"),
    (b"\xfd7zXZ\x00", "packed with xz", "unpack it with xz -d"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x04\x22\x4d\x18", "packed with lz4", _UNPACK),
    (b"\xff\x06\x00\x00sNaPpY", "packed with snappy", _UNPACK),
    (b"FEA1", "Feather of version 1", _CONVERT),
    (b"ORC", "ORC", _CONVERT),
    (b"Obj\x01", "Avro", _CONVERT),
    (b"SQLite format 3\x00", "an SQLite database", _CONVERT),
    (b"\x89HDF", "HDF5", _CONVERT),
    (b"\x93NUMPY", "a NumPy array", _CONVERT),
    (b"%PDF", "a PDF", _CONVERT),
    (b"\x80\x02", "a Python pickle", _CONVERT),
    (b"\x80\x03", "a Python pickle", _CONVERT),
    (b"\x80\x04", "a Python pickle", _CONVERT),
    (b"\x80\x05", "a Python pickle", _CONVERT),
]
"""First bytes of an unsupported format, its name, and the remedy."""

_UTF_16 = re.compile(rb"\xff\xfe|\xfe\xff|\x00\x00\xfe\xff|\x00*[\[{\"]\x00")
_ARRAY = re.compile(rb"\[\s*(\{|\]|$)")
_ONE_OBJECT = re.compile(rb"\{[ \t]*\r?\n\s*\"")


def rows(file: str) -> Rows:
    """Rows of a file or hub dataset; a row that cannot be parsed is a RowError.

    Raises:
        InputError: while reading, if the file is missing, damaged, or in an unsupported format.
    """
    if HUB.fullmatch(file):
        yield from _hub_rows(file)
        return
    if container(file)[1] not in SUFFIXES:
        raise InputError(f"{file}: is not a readable file; readable are {READABLE}")
    try:
        fs, path = open_url(file)
        with fs.open(path, "rb") as raw:
            yield from _file_rows(raw, file)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; check the path") from None
    except Exception as error:
        if isinstance(error, InputError) or not (isinstance(error, _BROKEN) or is_remote(file)):
            raise
        if "too much memory" in str(error):  # zstd's default limit of 128 MiB
            raise InputError(
                f"{file}: was packed with a window of more than 128 MiB (zstd --long or --ultra); "
                "pack it again without: zstd -d --long=31, then zstd"
            ) from None
        raise InputError(
            f"{file}: cannot be read to its end ({why(error, file)}); it is truncated, damaged or "
            "out of reach: fetch it again"
        ) from error


def _file_rows(raw: Any, file: str) -> Rows:
    _, suffix, compression = container(file)
    stream = io.BufferedReader(raw, 2**20)
    packed = _packed_with(stream.peek(8))
    if packed:
        stream = _unpacked(stream, packed)
    start = stream.peek(512)
    if not start:
        return
    if start.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
        if packed:
            raise InputError(f"{file}: is a table inside {packed}; unpack it")
        raw.seek(0)
        if start.startswith(b"PAR1"):
            yield from parquet_rows(raw)
        else:
            yield from arrow_rows(raw, is_stream=not start.startswith(b"ARROW1"))
        return
    _refuse_other(start, file)
    if start.startswith(BOM):
        stream.read(len(BOM))
    text = start.removeprefix(BOM).lstrip()
    named = _TABLES.get(suffix) or (_PACKED.get(compression) if not packed else None)
    if named and text[:1] not in (b"{", b"["):
        raise InputError(
            f"{file}: cannot be read as {named}, as its name says: it begins with "
            f"{bytes(start[:16])!r}; fetch it again, or rename it"
        )
    if _ONE_OBJECT.match(text):
        raise InputError(
            f"{file}: is one JSON object over several lines; write a JSON array of rows, or one "
            "row a line"
        )
    if text.startswith(b"[") if suffix == ".json" else _ARRAY.match(text):
        yield from array_rows(stream, file)
    else:
        yield from line_rows(stream)


def _packed_with(start: bytes) -> str:
    """Name of the compression that begins with `start`; empty if there is none."""
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    # Some programs write a skippable zstd frame first.
    if start.startswith(b"\x28\xb5\x2f\xfd") or re.match(rb"[\x50-\x5f]\x2a\x4d\x18", start):
        return "zstd"
    return "bzip2" if start.startswith(b"BZh") and start[4:8] == b"1AY&" else ""


def _unpacked(stream: Any, packed: str) -> io.BufferedReader:
    if packed == "gzip":
        stream = gzip.GzipFile(fileobj=stream)
    elif packed == "bzip2":
        stream = bz2.BZ2File(stream)
    else:
        # Arrow raises for a truncated file; the zstandard library, which fsspec uses, does not.
        stream = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
    return io.BufferedReader(stream, 2**20)


def _refuse_other(start: bytes, file: str) -> None:
    """Raise InputError if the first bytes are neither JSON nor a table."""
    for magic, what, remedy in _OTHERS:
        if start.startswith(magic):
            raise InputError(f"{file}: is {what}; {remedy}")
    if start[257:262] == b"ustar":
        raise InputError(f"{file}: is a tar archive; {_UNPACK}")
    if _UTF_16.match(start):
        raise InputError(
            f"{file}: is UTF-16 or UTF-32; write UTF-8, such as with iconv -f UTF-16 -t UTF-8"
        )
    text = start.removeprefix(BOM).lstrip().lower()
    if text.startswith(b"<"):
        what = "HTML" if b"html" in text else "XML"
        raise InputError(
            f"{file}: is {what}, perhaps a page that says why the file was not sent; fetch it again"
        )


def _hub_rows(file: str) -> Rows:
    from datasets import load_dataset  # slow to import and rarely needed

    hub = HUB.fullmatch(file)
    assert hub is not None
    try:
        split = hub["split"] or "train"
        rows = load_dataset(hub["name"], hub["config"], split=split, streaming=True)
        yield from enumerate(rows, start=1)
    except Exception as error:  # the library raises errors of many types
        raise InputError(
            f"{file}: cannot be read from the hub ({type(error).__name__}: {one_line(error)}); "
            "check the name, the configuration, the split (hf://name:config:split) and the network"
        ) from error
