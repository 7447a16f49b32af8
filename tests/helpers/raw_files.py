"""Files of rows, byte by byte, for tests of how they are read."""

import json
from pathlib import Path

from g2is_ray.data.reading import read_examples

HI = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
ROW = {"messages": HI}


def lines(*rows):
    """JSON lines of rows; a row given as bytes stands as it is."""
    return b"".join(
        (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
    )


def write(name, data):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def read(name, data=None, **options):
    if data is not None:
        write(name, data)
    return list(read_examples([name], **options))
