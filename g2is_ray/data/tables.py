"""Tables: rows of Parquet and Arrow files, a batch at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from g2is_ray.data.json_rows import Rows
from g2is_ray.data.values import MAX_ROW_BYTES, RowError

_BATCH_ROWS, _BATCH_BYTES = 256, 64 * 2**20


def parquet_rows(raw: Any, *, batch_rows: int = _BATCH_ROWS) -> Rows:
    """Rows of a Parquet file, decoded at most `batch_rows` at a time."""
    metadata = pq.read_metadata(raw)
    columns = map(metadata.schema.column, range(metadata.num_columns))
    texts = [c.path for c in columns if c.physical_type == "BYTE_ARRAY" and c.scale < 0]
    # Without pre-buffering, Arrow does not hold a whole row group in memory. Strings stay encoded
    # as dictionaries, because a small file may decode to gigabytes.
    table = pq.ParquetFile(
        raw, metadata=metadata, pre_buffer=False, buffer_size=2**20, read_dictionary=texts
    )
    return enumerate(_rows(table.iter_batches(batch_rows)), start=1)


def arrow_rows(raw: Any, *, is_stream: bool) -> Rows:
    """Rows of an Arrow stream, as `datasets` saves it, or of a Feather file with an index."""
    source = pa.PythonFile(raw, mode="r")
    if is_stream:
        with pa.ipc.open_stream(source) as reader:
            yield from enumerate(_rows(map(_validated, reader)), start=1)
        return
    with pa.ipc.open_file(source) as reader:
        batches = map(reader.get_batch, range(reader.num_record_batches))
        yield from enumerate(_rows(map(_validated, batches)), start=1)


def _validated(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, validated, because Arrow trusts offsets in a file and may read out of bounds."""
    batch.validate(full=True)
    return batch


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Any]:
    for batch in batches:
        for first in range(0, batch.num_rows, _BATCH_ROWS):
            yield from _batch_rows(batch.slice(first, _BATCH_ROWS))


def _batch_rows(batch: pa.RecordBatch) -> Iterator[Any]:
    size = sum(map(_decoded_bytes, batch.columns))
    if batch.num_rows == 1 and size > MAX_ROW_BYTES:
        yield RowError(f"the row is longer than {MAX_ROW_BYTES // 2**20} MiB")
    elif size > _BATCH_BYTES:
        half = batch.num_rows // 2
        yield from _batch_rows(batch.slice(0, half))
        yield from _batch_rows(batch.slice(half))
    else:
        try:
            rows = batch.to_pylist()
        except Exception:  # such as dates outside Python's range; types raise various errors
            rows = _values(batch.to_struct_array())
        yield from rows


def _values(array: Any) -> list[Any]:
    """Python values of an array; a cell that Python cannot hold becomes a string or None.

    The first of several fields with the same name in an object is used.
    """
    kind = array.type
    found: list[Any]
    if isinstance(array, pa.ExtensionArray):
        return _values(array.storage)
    if pa.types.is_dictionary(kind):
        return _values(array.dictionary_decode())
    if pa.types.is_struct(kind):
        fields: dict[str, list[Any]] = {}
        for field, column in zip(kind, array.flatten(), strict=True):
            fields.setdefault(field.name, _values(column))
        each = zip(*fields.values(), strict=True) if fields else [()] * len(array)
        found = [dict(zip(fields, row, strict=True)) for row in each]
    elif pa.types.is_map(kind):
        pairs = pa.StructArray.from_arrays([array.keys, array.items], names=["key", "value"])
        lists = _values(pa.ListArray.from_arrays(array.offsets, pairs))
        found = [[tuple(pair.values()) for pair in one] for one in lists]
    elif any(is_kind(kind) for is_kind in _LISTS):
        items = iter(_values(array.flatten()))
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_pylist()
        found = [list(itertools.islice(items, length)) for length in lengths]
    else:
        try:
            return list(array.to_pylist())
        except Exception:  # types raise various errors
            return [_cell(scalar) for scalar in array]
    return [
        value if valid else None
        for value, valid in zip(found, array.is_valid().to_pylist(), strict=True)
    ]


def _cell(scalar: Any) -> Any:
    if not scalar.is_valid:
        return None
    for convert in _CONVERSIONS:
        try:
            return convert(scalar)
        except Exception:  # types raise various errors
            continue
    return None


_CONVERSIONS: tuple[Callable[[Any], Any], ...] = (
    lambda scalar: scalar.as_py(),
    # Bytes that are not UTF-8 become lone surrogates, and a row with those is rejected.
    lambda scalar: scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape"),
    lambda scalar: scalar.cast(pa.string()).as_py(),
)


def _decoded_bytes(array: Any) -> int:
    """Bytes of an array after decoding: a dictionary's text counts each time it occurs."""
    if pa.types.is_dictionary(array.type):
        if not any(is_kind(array.type.value_type) for is_kind in _TEXTS):
            return int(array.indices.nbytes)
        lengths = pc.take(pc.binary_length(array.dictionary), array.indices)
        return pc.sum(lengths).as_py() or 0
    if pa.types.is_struct(array.type):
        return sum(map(_decoded_bytes, array.flatten()))
    if pa.types.is_map(array.type):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        parts = (array.keys, array.items)
        return sum(_decoded_bytes(part.slice(first, last - first)) for part in parts)
    if any(is_kind(array.type) for is_kind in _LISTS):
        return _decoded_bytes(array.flatten())
    return int(array.nbytes)


_TEXTS = (
    *(pa.types.is_string, pa.types.is_large_string),
    *(pa.types.is_binary, pa.types.is_large_binary),
)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
