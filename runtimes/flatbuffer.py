"""Flatbuffers looked through before native code reads them: every table, vector and string has to lie in the bytes.

A format is told as tables by name: field number to a scalar, "[scalar]", "string", a table, or "[table]". A field that is not
told is refused, so that nothing is followed which was not looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

Tables = Mapping[str, Mapping[int, str]]
MAX_TABLES = 1 << 20  # a 3B model has 20,000; lists that share their tables could make more of them than the file has bytes
SCALARS = {"u8": 1, "i32": 4, "u32": 4, "f32": 4, "u64": 8, "i64": 8}
SIGNED = {"i32": "i", "i64": "q"}


class Damage(Exception):
    """What is wrong with the file."""


@dataclass(frozen=True)
class Table:
    """The fields that are there: scalars as numbers, vectors of integers as tuples, of others as their length or tables."""

    fields: Mapping[int, object]

    def number(self, field: int) -> int:
        """A scalar; 0 where it is not there."""
        value = self.fields.get(field, 0)
        return value if isinstance(value, int) else 0

    def numbers(self, field: int) -> tuple[int, ...]:
        """A vector of integers."""
        value = self.fields.get(field, ())
        return value if isinstance(value, tuple) else ()

    def tables(self, field: int) -> list[Table]:
        """A vector of tables."""
        value = self.fields.get(field, [])
        return value if isinstance(value, list) else []


class Reader:
    """Follows offsets, and refuses those that leave the file."""

    def __init__(self, data: memoryview, tables: Tables) -> None:
        self._data, self._kinds = data, tables
        self._vtables: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._tables = 0

    def unsigned(self, at: int, size: int) -> int:
        """A little-endian number of `size` bytes."""
        if at < 0 or at + size > len(self._data):
            raise Damage(f"an offset leads to byte {at} of {len(self._data)}")
        return int.from_bytes(self._data[at : at + size], "little")

    def table(self, at: int, name: str) -> Table:
        """The table at a byte, and all that hangs on it."""
        vtable = at - struct.unpack("<i", self.unsigned(at, 4).to_bytes(4, "little"))[0]
        size, offsets = self._vtable(vtable)
        self.unsigned(at, size)
        kinds, fields = self._kinds[name], {}
        for number, offset in enumerate(offsets):
            if offset == 0:
                continue
            if number not in kinds:
                raise Damage(f"a table {name} has an unknown field {number}")
            kind = kinds[number]
            if offset + SCALARS.get(kind, 4) > size:
                raise Damage(f"a field of {name} lies outside of it")
            fields[number] = self._value(at + offset, kind)
        return Table(fields)

    def _vtable(self, at: int) -> tuple[int, tuple[int, ...]]:
        """Size of its tables, and the offset of every field in them (0: not there)."""
        if at not in self._vtables:
            length, size = self.unsigned(at, 2), self.unsigned(at + 2, 2)
            if length < 4 or length % 2 or size < 4:
                raise Damage("a table's description is broken")
            self.unsigned(at, length)
            self._vtables[at] = size, struct.unpack(f"<{length // 2 - 2}H", self._data[at + 4 : at + length])
        return self._vtables[at]

    def _value(self, at: int, kind: str) -> object:
        if kind in SCALARS:
            return self.unsigned(at, SCALARS[kind])
        at += self.unsigned(at, 4)
        if kind == "string":
            return self._items(at, 1, end=1)
        if kind in self._kinds:
            return self.table(at, kind)
        item = kind[1:-1]
        if item in SCALARS:
            size = SCALARS[item]
            count = self._items(at, size)
            form = SIGNED.get(item)
            return struct.unpack(f"<{count}{form}", self._data[at + 4 : at + 4 + size * count]) if form else count
        count = self._items(at, 4)
        self._tables += count
        if self._tables > MAX_TABLES:
            raise Damage(f"more than {MAX_TABLES} tables")
        starts = struct.unpack(f"<{count}I", self._data[at + 4 : at + 4 + 4 * count])
        return [self.table(at + 4 + 4 * index + start, item) for index, start in enumerate(starts)]

    def _items(self, at: int, size: int, end: int = 0) -> int:
        count = self.unsigned(at, 4)
        self.unsigned(at + 4, count * size + end)
        return count
