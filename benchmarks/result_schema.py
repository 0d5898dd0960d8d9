"""The JSON Schema of a run, made of the dataclasses of `result`, which are what a file is read into.

python -m edgellm.benchmarks.result_schema > benchmarks/result.schema.json
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edgellm.benchmarks.result import KIND, SCHEMA, Run

Schema = dict[str, Any]

# What the types do not say, and `result.read` checks as well.
ABOVE_ZERO: Schema = {"type": "number", "exclusiveMinimum": 0}
LIMITS: dict[tuple[str, str], Schema] = {
    ("Run", "schema"): {"const": SCHEMA},
    ("Run", "kind"): {"const": KIND},
    ("Sample", "round"): {"type": "integer", "minimum": 0},
    ("Sample", "seconds"): ABOVE_ZERO,
    ("Sample", "steps"): {"type": "array", "items": ABOVE_ZERO},
}
NO_DEFAULT_IN_FILES = {("Run", "schema"), ("Run", "kind")}


def schema() -> Schema:
    """Of a whole file, in the dialect 2020-12."""
    found: dict[str, Schema] = {}
    top = _of(Run, found)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A benchmark run of edgellm",
        **top,
        "$defs": dict(sorted(found.items())),
    }


def to_text() -> str:
    """As it is committed."""
    return json.dumps(schema(), indent=1) + "\n"


def _of(hint: Any, found: dict[str, Schema]) -> Schema:
    """The schema of a type; those of dataclasses go to `found`."""
    origin, parameters = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(parameter, found) for parameter in parameters]}
    if origin is Literal:
        return {"enum": list(parameters)}
    if origin is tuple:
        return {"type": "array", "items": _of(parameters[0], found)}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _of(parameters[1], found)}
    if dataclasses.is_dataclass(hint):
        name = getattr(hint, "__name__", "")
        if name not in found:
            found[name] = {}  # so that a class that holds itself ends
            found[name] = _of_class(hint, found)
        return {"$ref": f"#/$defs/{name}"}
    names = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}
    return {"type": names[hint]}


def _of_class(cls: Any, found: dict[str, Schema]) -> Schema:
    hints = get_type_hints(cls)
    name = cls.__name__
    properties: dict[str, Schema] = {}
    required = []
    for field in dataclasses.fields(cls):
        properties[field.name] = LIMITS.get((name, field.name)) or _of(hints[field.name], found)
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if not optional or (name, field.name) in NO_DEFAULT_IN_FILES:
            required.append(field.name)
    return {
        "description": (inspect.getdoc(cls) or "").partition("\n")[0],
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


if __name__ == "__main__":
    print(to_text(), end="")
