"""JSON values to frozen dataclasses, checked against their type hints: what a manifest holds is never trusted."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

D = TypeVar("D")

_hints = functools.cache(get_type_hints)


def build(cls: type[D], value: object, where: str = "") -> D:
    """Make a dataclass from a JSON object.

    Knows str, int, float, bool, None, Literal, unions, tuple[X, ...], Mapping[str, X], Any and nested dataclasses. A
    field with a default may be missing; one that the class does not have is an error.

    Raises:
        ValueError: the value does not fit; the message names the field by its path.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"'{where}' is not an object")
    hints = _hints(cast(Any, cls))
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    unknown = [key for key in value if key not in fields]
    if unknown:
        raise ValueError(f"unknown field '{_join(where, unknown[0])}'")
    arguments = {}
    for name, field in fields.items():
        if name in value:
            arguments[name] = _convert(hints[name], value[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"missing field '{_join(where, name)}'")
    return cls(**arguments)


def _convert(hint: Any, value: object, where: str) -> object:
    origin, parameters = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parameters:
            return None
        rest = [parameter for parameter in parameters if parameter is not type(None)]
        return _convert(rest[0], value, where)
    if origin is Literal:
        return _check(value in parameters, value, where, f"one of {', '.join(map(repr, parameters))}")
    if origin is tuple:
        items = _check(isinstance(value, list | tuple), value, where, "a list")
        return tuple(_convert(parameters[0], item, f"{where}[{i}]") for i, item in enumerate(cast(list[object], items)))
    if origin is not None and issubclass(origin, Mapping):
        entries = cast(dict[str, object], _check(isinstance(value, dict), value, where, "an object"))
        return {key: _convert(parameters[1], entry, _join(where, key)) for key, entry in entries.items()}
    if dataclasses.is_dataclass(hint):
        return build(cast(type[object], hint), value, where)
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: object, where: str) -> object:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53:
        return float(value)
    fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if hint is float and fits:
        fits = math.isfinite(cast(float, value))
    return _check(
        fits, value, where, {"str": "a text", "int": "a whole number", "float": "a number"}.get(hint.__name__, "a bool")
    )


def _check(fits: bool, value: object, where: str, wanted: str) -> object:
    if not fits:
        raise ValueError(f"'{where}' is not {wanted}")
    return value


def _join(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)
