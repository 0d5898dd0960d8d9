"""Is this file a .tflite model, before native code reads it: LiteRT follows a damaged flatbuffer's offsets out of the file.

Every table, vector and string that is reached from the root has to lie in the file, every index has to lead somewhere, and
every buffer's bytes have to be there. The fields are those of LiteRT's schema (tflite/converter/schema/schema.fbs); one that
our converter never writes is refused, so that nothing is followed which was not looked at.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import BundleError

IDENTIFIER = b"TFL3"
MAX_TABLES = 1 << 20  # a 3B model has 20,000; lists that share their tables could make more of them than the file has bytes
BITS = {9: 8, 17: 4}  # by the schema's type: int8, int4
SCALARS = {"u8": 1, "i32": 4, "u32": 4, "f32": 4, "u64": 8, "i64": 8}

# Tables by name: field number to a scalar, "[scalar]", "string", a table, or "[table]".
TABLES: Mapping[str, Mapping[int, str]] = {
    "Model": {0: "u32", 1: "[OperatorCode]", 2: "[SubGraph]", 3: "string", 4: "[Buffer]", 7: "[SignatureDef]"},
    "OperatorCode": {0: "u8", 2: "i32", 3: "i32"},
    "SubGraph": {0: "[Tensor]", 1: "[i32]", 2: "[i32]", 3: "[Operator]", 4: "string"},
    "Tensor": {0: "[i32]", 1: "u8", 2: "u32", 3: "string", 4: "Quantization"},
    "Quantization": {2: "[f32]", 3: "[i64]", 4: "u8", 5: "Blockwise"},
    "Blockwise": {0: "i32", 1: "i32", 2: "i32"},
    "Buffer": {0: "[u8]", 1: "u64", 2: "u64"},
    "Operator": {0: "u32", 1: "[i32]", 2: "[i32]", 3: "u8", 4: "Options"},
    # options of the operators that we write are up to eight scalars, of at most four bytes each
    "Options": dict.fromkeys(range(8), "u8"),
    "SignatureDef": {0: "[TensorMap]", 1: "[TensorMap]", 2: "string", 4: "u32"},
    "TensorMap": {0: "string", 1: "u32"},
}


@dataclass(frozen=True)
class Grid:
    """How the codes of some weights of a file become values: so many bits, so many scales, or scales of blocks."""

    bits: int
    scales: int
    blocks: bool


def check(path: Path) -> frozenset[Grid]:
    """Look through the file's tables; the grids of its weights.

    Raises:
        BundleError: it is no model, or leads out of itself.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            if data[4:8] != IDENTIFIER:
                raise _Damage("it does not begin as one")
            model = reader.table(reader.unsigned(0, 4), "Model")
            _check_indices(model, len(data))
            return frozenset(_grids(model))
    except (_Damage, ValueError) as damage:  # mmap refuses an empty file with the latter
        raise BundleError(f"not a sound TFLite model: {damage}", where=path, fix="convert the model again") from damage
    except OSError as error:
        raise BundleError(f"cannot be read: {error.strerror}", where=path, fix="check its permissions") from error


class _Damage(Exception):
    """What is wrong with the file."""


@dataclass(frozen=True)
class _Table:
    """The fields that are there: scalars as numbers, vectors of integers as tuples, of others as their length or tables."""

    fields: Mapping[int, object]

    def number(self, field: int) -> int:
        value = self.fields.get(field, 0)
        return value if isinstance(value, int) else 0

    def numbers(self, field: int) -> tuple[int, ...]:
        value = self.fields.get(field, ())
        return value if isinstance(value, tuple) else ()

    def tables(self, field: int) -> list[_Table]:
        value = self.fields.get(field, [])
        return value if isinstance(value, list) else []


class _Reader:
    """Follows offsets, and refuses those that leave the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._vtables: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._tables = 0

    def unsigned(self, at: int, size: int) -> int:
        if at < 0 or at + size > len(self._data):
            raise _Damage(f"an offset leads to byte {at} of {len(self._data)}")
        return int.from_bytes(self._data[at : at + size], "little")

    def table(self, at: int, name: str) -> _Table:
        vtable = at - struct.unpack("<i", self.unsigned(at, 4).to_bytes(4, "little"))[0]
        size, offsets = self._vtable(vtable)
        self.unsigned(at, size)
        kinds, fields = TABLES[name], {}
        for number, offset in enumerate(offsets):
            if offset == 0:
                continue
            if number not in kinds:
                raise _Damage(f"a table {name} has an unknown field {number}")
            kind = kinds[number]
            if offset + SCALARS.get(kind, 4) > size:
                raise _Damage(f"a field of {name} lies outside of it")
            fields[number] = self._value(at + offset, kind)
        return _Table(fields)

    def _vtable(self, at: int) -> tuple[int, tuple[int, ...]]:
        """Size of its tables, and the offset of every field in them (0: not there)."""
        if at not in self._vtables:
            length, size = self.unsigned(at, 2), self.unsigned(at + 2, 2)
            if length < 4 or length % 2 or size < 4:
                raise _Damage("a table's description is broken")
            self.unsigned(at, length)
            self._vtables[at] = size, struct.unpack(f"<{length // 2 - 2}H", self._data[at + 4 : at + length])
        return self._vtables[at]

    def _value(self, at: int, kind: str) -> object:
        if kind in SCALARS:
            return self.unsigned(at, SCALARS[kind])
        at += self.unsigned(at, 4)
        if kind == "string":
            return self._items(at, 1, end=1)
        if kind in TABLES:
            return self.table(at, kind)
        item = kind[1:-1]
        if item in SCALARS:
            count = self._items(at, SCALARS[item])
            return struct.unpack(f"<{count}i", self._data[at + 4 : at + 4 + 4 * count]) if item == "i32" else count
        count = self._items(at, 4)
        self._tables += count
        if self._tables > MAX_TABLES:
            raise _Damage(f"more than {MAX_TABLES} tables")
        starts = struct.unpack(f"<{count}I", self._data[at + 4 : at + 4 + 4 * count])
        return [self.table(at + 4 + 4 * index + start, item) for index, start in enumerate(starts)]

    def _items(self, at: int, size: int, end: int = 0) -> int:
        count = self.unsigned(at, 4)
        self.unsigned(at + 4, count * size + end)
        return count


def _check_indices(model: _Table, size: int) -> None:
    """Codes, buffers, tensors and subgraphs that are named must be there."""
    codes, buffers, subgraphs = model.tables(1), model.tables(4), model.tables(2)
    for buffer in buffers:
        if buffer.number(1) + buffer.number(2) > size:
            raise _Damage("a buffer's bytes lie behind the file's end")
    counts = []
    for subgraph in subgraphs:
        tensors = subgraph.tables(0)
        counts.append(len(tensors))
        for tensor in tensors:
            _within([tensor.number(2)], len(buffers), "buffer")
            if any(length < 0 for length in tensor.numbers(0)):
                raise _Damage("a tensor has a negative size")
            quantization = tensor.fields.get(4)
            if isinstance(quantization, _Table) and isinstance(details := quantization.fields.get(5), _Table):
                _within([details.number(0)], len(tensors), "tensor")
        _within([*subgraph.numbers(1), *subgraph.numbers(2)], len(tensors), "tensor")
        for operator in subgraph.tables(3):
            _within([operator.number(0)], len(codes), "operator code")
            _within([index for index in operator.numbers(1) if index != -1], len(tensors), "tensor")
            _within(operator.numbers(2), len(tensors), "tensor")
    for signature in model.tables(7):
        _within([signature.number(4)], len(subgraphs), "subgraph")
        named = [entry.number(1) for entry in signature.tables(0) + signature.tables(1)]
        _within(named, counts[signature.number(4)], "tensor")


def _grids(model: _Table) -> Iterator[Grid]:
    for subgraph in model.tables(2):
        for tensor in subgraph.tables(0):
            if isinstance(quantization := tensor.fields.get(4), _Table):
                yield Grid(BITS.get(tensor.number(1), 0), quantization.number(2), 5 in quantization.fields)


def _within(indices: list[int] | tuple[int, ...], count: int, what: str) -> None:
    for index in indices:
        if not 0 <= index < count:
            raise _Damage(f"there is no {what} {index}")
