"""Is this file a .tflite model, before native code reads it: LiteRT follows a damaged flatbuffer's offsets out of the file.

Every table, vector and string that is reached from the root has to lie in the file, every index has to lead somewhere, and
every buffer's bytes have to be there. The fields are those of LiteRT's schema (tflite/converter/schema/schema.fbs); one that
our converter never writes is refused, so that nothing is followed which was not looked at.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import BundleError
from edgellm.runtimes.flatbuffer import Damage, Reader, Table, Tables

IDENTIFIER = b"TFL3"
BITS = {9: 8, 17: 4}  # by the schema's type: int8, int4

TABLES: Tables = {
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
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):
            return check_model(data)
    except (Damage, ValueError) as damage:  # mmap refuses an empty file with the latter
        raise BundleError(f"not a sound TFLite model: {damage}", where=path, fix="convert the model again") from damage
    except OSError as error:
        raise BundleError(f"cannot be read: {error.strerror}", where=path, fix="check its permissions") from error


def check_model(data: memoryview) -> frozenset[Grid]:
    """Look through the tables of a model in memory; the grids of its weights.

    Raises:
        Damage: what is wrong.
    """
    reader = Reader(data, TABLES)
    if data[4:8] != IDENTIFIER:
        raise Damage("it does not begin as one")
    model = reader.table(reader.unsigned(0, 4), "Model")
    _check_indices(model, len(data))
    return frozenset(_grids(model))


def _check_indices(model: Table, size: int) -> None:
    """Codes, buffers, tensors and subgraphs that are named must be there."""
    codes, buffers, subgraphs = model.tables(1), model.tables(4), model.tables(2)
    for buffer in buffers:
        if buffer.number(1) + buffer.number(2) > size:
            raise Damage("a buffer's bytes lie behind the file's end")
    counts = []
    for subgraph in subgraphs:
        tensors = subgraph.tables(0)
        counts.append(len(tensors))
        for tensor in tensors:
            _within([tensor.number(2)], len(buffers), "buffer")
            if any(length < 0 for length in tensor.numbers(0)):
                raise Damage("a tensor has a negative size")
            quantization = tensor.fields.get(4)
            if isinstance(quantization, Table):
                if any(not -128 <= point <= 127 for point in quantization.numbers(3)):
                    raise Damage("a zero point lies outside of its codes")
                if isinstance(details := quantization.fields.get(5), Table):
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


def _grids(model: Table) -> Iterator[Grid]:
    for subgraph in model.tables(2):
        for tensor in subgraph.tables(0):
            if isinstance(quantization := tensor.fields.get(4), Table):
                yield Grid(BITS.get(tensor.number(1), 0), quantization.number(2), 5 in quantization.fields)


def _within(indices: list[int] | tuple[int, ...], count: int, what: str) -> None:
    for index in indices:
        if not 0 <= index < count:
            raise Damage(f"there is no {what} {index}")
