"""Tools: calls and definitions of functions in the form that chat templates take.

That form is Hugging Face's: `{"type": "function", "function": {…}}`, a call's arguments as an
object. OpenAI's older `function_call` and `functions`, LLaMA-Factory's bare objects, and JSON text
of any of these are converted to it.
"""

from __future__ import annotations

import json
from typing import Any

from g2is_ray.data.values import RowError, as_json, is_blank, kind, unpack, without_nulls


def calls_of(value: Any, place: str) -> list[dict[str, Any]]:
    """Tool calls in the chat templates' form; empty if the value is blank.

    Raises:
        RowError: a call has no name, or its arguments are no object.
    """
    return [_call(one, place) for one in _objects(value, place)]


def _call(value: dict[str, Any], place: str) -> dict[str, Any]:
    function = unpack(value.get("function"))
    if not isinstance(function, dict):  # the name itself, or a bare call
        function = value if function is None else {**value, "name": function}
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RowError(f"{place} has a call without the name of a function")
    arguments = function.get("arguments", function.get("parameters"))
    arguments = {} if is_blank(arguments) else unpack(arguments)
    if not isinstance(arguments, dict):
        raise RowError(f"{place} has a call whose arguments are {kind(arguments)}, not an object")
    call = {"type": "function", "function": {"name": name, "arguments": without_nulls(arguments)}}
    if isinstance(value.get("id"), str | int) and value["id"] != "":
        call["id"] = str(value["id"])
    return _plain(call)


def definitions_of(value: Any, place: str) -> list[dict[str, Any]]:
    """Tool definitions in the chat templates' form; empty if the value is blank.

    Raises:
        RowError: the value is not a list of objects, or a tool has no name.
    """
    return [_definition(one, place) for one in _objects(value, place)]


def _definition(value: dict[str, Any], place: str) -> dict[str, Any]:
    value = without_nulls(value)
    function = unpack(value.get("function"))
    if isinstance(function, dict):
        value = {"type": "function", **value, "function": function}
    elif isinstance(value.get("name"), str):
        bare = {k: v for k, v in value.items() if (k, v) != ("type", "function")}
        value = {"type": "function", "function": bare}
    else:
        raise RowError(f"{place} has a tool without the name of a function")
    return _plain(value)


def _objects(value: Any, place: str) -> list[dict[str, Any]]:
    if is_blank(value):
        return []
    value = unpack(value)
    found = [unpack(one) for one in (value if isinstance(value, list) else [value])]
    for one in found:
        if not isinstance(one, dict):
            raise RowError(f"{place} is {kind(one)} where a function belongs; write JSON objects")
    return found


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """The value with everything that JSON cannot represent as text."""
    found: dict[str, Any] = json.loads(as_json(value))
    return found
