"""What made a stage, as `workspace.json` keeps it, and how two such records differ.

A record holds `settings`, `inputs` (fingerprints of the stages that were read), its own
`fingerprint` of both, `arguments` to remember, and in `grown_from` the fingerprints that the
stage had before it grew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Record = dict[str, Any]


def make_record(
    settings: Mapping[str, Any], inputs: Mapping[str, str], arguments: Mapping[str, Any]
) -> Record:
    """The record of a stage that has not grown."""
    decides = {"settings": json.loads(json.dumps(settings)), "inputs": dict(inputs)}
    text = json.dumps(decides, sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {**decides, "fingerprint": fingerprint, "arguments": dict(arguments), "grown_from": []}


def past(record: Mapping[str, Any] | None) -> list[str]:
    """Fingerprints that a stage had before it grew."""
    return list((record or {}).get("grown_from", ()))


def grown_inputs(record: Mapping[str, Any] | None, known: Mapping[str, Record]) -> list[str]:
    """Inputs of a stage that have grown since it was made; `known` are all stages' records."""
    inputs = (record or {}).get("inputs", {})
    return [name for name, made_of in inputs.items() if made_of in past(known.get(name))]


def lineage(earlier: Record | None, now: Record, known: Mapping[str, Record]) -> list[str]:
    """What a stage has grown from: nothing, if it was made otherwise before."""
    if earlier is None or earlier["settings"] != now["settings"]:
        return []
    if earlier["fingerprint"] == now["fingerprint"]:
        return past(earlier)
    for name, fingerprint in now["inputs"].items():
        if earlier["inputs"].get(name) not in (fingerprint, *past(known[name])):
            return []
    return [*past(earlier), earlier["fingerprint"]]


def other_setting(earlier: Record, now: Record) -> tuple[str, str, str] | None:
    """Name of a setting that differs, and both values, if there is one."""
    before, after = earlier["settings"], now["settings"]
    both = before.keys() & after.keys()  # first, because a difference there says more
    for name in (*sorted(both), *sorted(before.keys() ^ after.keys())):
        if before.get(name) != after.get(name):
            return name, _short(before.get(name)), _short(after.get(name))
    return None


def other_inputs(earlier: Record, now: Record) -> list[str]:
    """Inputs that are not what they were."""
    was = earlier["inputs"]
    return [name for name, made_of in now["inputs"].items() if was.get(name) != made_of]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "…"
