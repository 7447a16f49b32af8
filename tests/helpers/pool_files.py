"""Small files of rows, for tests that read pools."""

import json
from pathlib import Path


def row(number, **more):
    question = {"role": "user", "content": f"What is {number}?"}
    answer = {"role": "assistant", "content": f"A number, {number}"}
    return {**more, "messages": [question, answer], "kept": number}


def write(name, *rows):
    """A file of JSON lines; a row given as text stands as it is. Returns its name."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(line + "\n" for line in lines))
    return name
