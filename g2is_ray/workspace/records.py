"""What `workspace.json` and receipts hold, and how two records of a stage differ.

A record says what made a stage: `settings`, `inputs` (fingerprints of the stages that were read),
its own `fingerprint` of both, `arguments` to remember, and in `grown_from` the fingerprints that
the stage had before it grew.

A workspace may come from somebody else, so all of this is checked like any input.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Never

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from g2is_ray.errors import WorkspaceError

FORMAT = 2

_STEP = "[A-Za-z0-9][A-Za-z0-9._@-]{0,199}"
_Path = Annotated[str, Field(pattern=f"^{_STEP}(/{_STEP}){{0,4}}$")]
_Fingerprint = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0, lt=2**48)]
_Parts = Annotated[int, Field(ge=0, lt=10**7)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Record = dict[str, Any]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    settings: dict[str, Any]
    inputs: dict[_Path, _Fingerprint]
    fingerprint: _Fingerprint
    arguments: dict[str, Any]
    grown_from: list[_Fingerprint]


class _Index(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    format: Literal[2]
    stages: dict[_Path, _Record]


class _Held(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    bytes: _Count
    sha256: _Sha256
    tag: str = ""


class _Receipt(BaseModel):
    """Facts that receipts of several kinds have, if they have them; no other is checked here."""

    model_config = ConfigDict(strict=True, extra="allow")

    files: dict[_Path, _Held]
    parts: _Parts = 0
    rows: _Count = 0
    part_rows: Annotated[int, Field(ge=1, lt=2**48)] = 1
    sizes: list[_Count] = []
    items: _Count = 0
    rejected: _Count = 0
    truncated: _Count = 0
    invalid: _Count | list[dict[str, Any]] = 0
    tokens: _Count = 0
    seconds: _Seconds = 0
    appends: dict[str, _Parts] = {}
    steps: _Count = 0
    seed: _Count = 0
    train_tokens: _Count = 0
    test_tokens: _Count = 0
    selected: _Count = 0
    supervised_tokens: _Count = 0
    edges: _Count = 0
    loss: float = 0
    exact_match: float | None = None
    exact_match_rows: _Count = 0
    learning_rates: Annotated[list[_Seconds | None], Field(min_length=1)] = []
    mean_similarity: float = 0
    recall_rows: _Count = 0
    recall: float = 0
    recall_low: float = 0
    recall_high: float = 0


class Receipt(dict[str, Any]):
    """A receipt as it was read from `where`.

    Raises:
        WorkspaceError: a fact is of the wrong kind; or, when it is asked for, missing.
    """

    def __init__(self, facts: Any, where: str) -> None:
        self._where = where
        try:
            _Receipt.model_validate(facts)
        except pydantic.ValidationError as error:
            self._refuse(_first(error))
        super().__init__(facts)

    def __missing__(self, name: str) -> Never:
        self._refuse(f"it lacks {name}")

    def __reduce__(self) -> tuple[type[Receipt], tuple[dict[str, Any], str]]:
        return Receipt, (dict(self), self._where)

    def file(self, name: str) -> dict[str, Any]:
        """Facts of a file that the receipt lists: `bytes`, `sha256`, and the storage's `tag`."""
        if name not in self["files"]:
            self._refuse(f"it does not list {name}")
        return dict(self["files"][name])

    def _refuse(self, why: str) -> Never:
        raise WorkspaceError(
            f"{self._where} is damaged ({why}); give the command that made it again"
        )


def check_index(value: Any) -> dict[str, Any]:
    """What `workspace.json` holds, if it can be a record of stages.

    Raises:
        ValueError: says what is wrong with it.
    """
    if not isinstance(value, dict) or "format" not in value:
        raise ValueError("it is no record of stages")
    try:
        json.dumps(value, ensure_ascii=False).encode()  # it is written again
        _Index.model_validate(value)
    except pydantic.ValidationError as error:
        raise ValueError(_first(error)) from None
    except (ValueError, RecursionError):
        raise ValueError("it nests too deeply, or has text that is not Unicode") from None
    return value


def _first(error: pydantic.ValidationError) -> str:
    """The first thing that is wrong, and where."""
    one = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, one['loc']))[:200]}: {one['msg']}"


def make_record(
    settings: Mapping[str, Any], inputs: Mapping[str, str], arguments: Mapping[str, Any]
) -> Record:
    """The record of a stage that has not grown."""
    decides = {"settings": _as_read(settings), "inputs": dict(inputs)}
    text = json.dumps(decides, sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    remembered = _as_read(arguments)
    return {**decides, "fingerprint": fingerprint, "arguments": remembered, "grown_from": []}


def _as_read(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they are after they were written as JSON and read again."""
    read: dict[str, Any] = json.loads(json.dumps(values))
    return read


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
    """Name of a setting that differs, and both values, if there is one.

    A model is shown with its place. If a model in the same place has changed and its chat template
    or tokenizer differs, that is named, because it says more.
    """
    before, after = earlier["settings"], now["settings"]
    both = sorted(before.keys() & after.keys())  # first, because a difference there says more
    if earlier["arguments"].get("model") == now["arguments"].get("model"):
        both.sort(key=lambda name: name != "template")
    for name in (*both, *sorted(before.keys() ^ after.keys())):
        if before.get(name) != after.get(name):
            return name, _shown(earlier, name), _shown(now, name)
    return None


def _shown(record: Record, name: str) -> str:
    value, place = record["settings"].get(name), record["arguments"].get(name)
    text = _short(value)
    return f"{_short(place)} ({text})" if name == "model" and place != value else text


def read_alike(stage: str, setting: str, known: Mapping[str, Record]) -> list[str]:
    """Other stages that were read from outside, as `stage` was, with the same value of a setting.

    The model of pool and targets is one, for example: if it is another, all must be read again.
    """
    value = known[stage]["settings"].get(setting)
    if known[stage]["inputs"] or setting in _OF_ONE:
        return []
    return [
        name
        for name, record in known.items()
        if name != stage and not record["inputs"] and record["settings"].get(setting, ...) == value
    ]


_OF_ONE = (
    "files",
    "schema",
    "warmup_from",
)  # settings of one stage that others may happen to share


def other_inputs(earlier: Record, now: Record) -> list[str]:
    """Inputs that are not what they were."""
    was = earlier["inputs"]
    return [name for name, made_of in now["inputs"].items() if was.get(name) != made_of]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "…"
