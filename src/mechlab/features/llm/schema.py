"""JSON answers: their form, and reading them strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mechlab.errors import MechlabError

_KNOWN = {
    "type",
    "description",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "minItems",
    "maxItems",
    "minimum",
    "maximum",
    "enum",
}
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
_DECLINED = re.compile(
    r"\s*(i'm sorry|i am sorry|sorry,|i can(no|')t|i am unable|i'm unable|i won't)", re.IGNORECASE
)


class Malformed(ValueError):
    """An answer that is not of the form asked for; ``declined`` when it reads like a refusal."""

    def __init__(self, message: str, declined: bool = False) -> None:
        super().__init__(message)
        self.declined = declined


def record(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """Schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def listing(items: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Schema of a list of exactly ``count`` items."""
    return {"type": "array", "items": dict(items), "minItems": count, "maxItems": count}


STRING = {"type": "string"}


def parse(text: str, schema: Mapping[str, Any]) -> Any:
    """The first JSON object in a text (``spotted``), checked against a schema.

    The schema may use type, properties, required, additionalProperties: false, items, minItems,
    maxItems, minimum, maximum and enum.

    Raises Malformed when there is none or it does not fit; nothing is guessed, cut or filled in.
    Raises MechlabError for a schema that says anything else.
    """
    value, _, _ = spotted(text)
    _check(value, schema, "answer")
    return value


def spotted(text: str) -> tuple[Any, int, int]:
    """The first JSON object in a text, and where it begins and ends. Malformed when there is none."""
    decoder = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_no_name_twice)
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except Malformed:
            raise
        except RecursionError:
            raise Malformed("the answer is nested too deeply") from None
        except ValueError:
            at = text.find("{", at + 1)
            continue
        return value, at, end
    raise Malformed("there is no JSON object in the answer", declined=_DECLINED.match(text) is not None)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Malformed("the answer says something twice")
    return found


def _check(value: Any, schema: Mapping[str, Any], where: str) -> None:
    if not set(schema) <= _KNOWN:
        raise MechlabError("schema says what cannot be checked", sorted(set(schema) - _KNOWN))
    kind = schema["type"]
    # To Python, true is the integer 1.
    fits: bool = isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
    if not fits:
        raise Malformed(f"{where} is not of type {kind}")
    if "enum" in schema and value not in schema["enum"]:
        raise Malformed(f"{where} is {value!r}, not one of {schema['enum']}")
    if kind in ("integer", "number") and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
    ):
        raise Malformed(f"{where} is {value}, out of range")
    if kind == "array":
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            raise Malformed(f"{where} has {len(value)} items, not {schema.get('minItems', 0)}")
        for number, each in enumerate(value):
            _check(each, schema["items"], f"{where}[{number}]")
    if kind == "object":
        properties = schema.get("properties", {})
        if missing := [name for name in schema.get("required", ()) if name not in value]:
            raise Malformed(f"{where} lacks {', '.join(missing)}")
        if schema.get("additionalProperties") is False and (
            extra := [name for name in value if name not in properties]
        ):
            raise Malformed(f"{where} has more than was asked for: {', '.join(extra)}")
        for name, inner in properties.items():
            if name in value:
                _check(value[name], inner, f"{where}.{name}")
