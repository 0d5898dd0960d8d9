"""Room in the KV cache of a .tflite file: LiteRT.js resizes no tensor, so the file is told another size before it is loaded.

The sizes of a tensor are integers of four bytes in the file. Their places are sent to the browser, so that the file itself
stays as it is, by its hash, for every size. Only inputs and outputs of
the signatures are changed: the sizes between them follow when the graph is prepared (no constant of it depends on them).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.bundle import Bundle, Graph, KVLayout
from edgellm.errors import BundleError
from edgellm.runtimes import tflite_file
from edgellm.runtimes.tflite_common import PREFILL, STEP, masks

STEPS = {"float32": STEP, "int8": 64}  # slots by which a cache grows, as natively
SUBGRAPHS, SIGNATURES = 2, 7  # fields of the schema's Model
INPUTS, OUTPUTS, KEY, SUBGRAPH = 0, 1, 2, 4  # of its SignatureDef


class _File:
    """Places of a checked flatbuffer's tables and vectors."""

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def u32(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 4], "little")

    def field(self, table: int, number: int) -> int | None:
        """Where a field lies; None where the table does not have it."""
        vtable = table - struct.unpack_from("<i", self.data, table)[0]
        length, at = struct.unpack_from("<H", self.data, vtable)[0], 4 + 2 * number
        offset = struct.unpack_from("<H", self.data, vtable + at)[0] if at < length else 0
        return table + offset if offset else None

    def vector(self, table: int, number: int) -> tuple[int, int]:
        """Where the items of a vector begin, and how many there are."""
        at = self.field(table, number)
        if at is None:
            return 0, 0
        at += self.u32(at)
        return at + 4, self.u32(at)

    def tables(self, table: int, number: int) -> list[int]:
        """The tables of a vector."""
        first, count = self.vector(table, number)
        return [at + self.u32(at) for at in range(first, first + 4 * count, 4)]

    def text(self, table: int, number: int) -> str:
        """A string."""
        first, count = self.vector(table, number)
        return bytes(self.data[first : first + count]).decode("utf-8", "replace")

    def number(self, table: int, number: int) -> int:
        """An unsigned number of four bytes; 0 where it is not there."""
        at = self.field(table, number)
        return 0 if at is None else self.u32(at)


@dataclass(frozen=True)
class Layout:
    """What of a file says its capacity.

    Attributes:
        chunks: tokens of the signatures for parts of a prompt, shortest first.
        places: bytes at which the capacity stands.
    """

    chunks: tuple[int, ...]
    places: tuple[int, ...]


def layout(bundle: Bundle, graph: Graph) -> Layout:
    """Where the capacity stands in a graph's file.

    Raises:
        BundleError: it is no sound model, or has no such inputs.
    """
    path = bundle.file(graph.file)
    tflite_file.check(path)
    axes = {name: axis for kv in graph.kv for name, axis in _axes(kv)}
    with (
        path.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
    ):
        file = _File(data)
        model = file.u32(0)
        subgraphs, chunks, places = file.tables(model, SUBGRAPHS), list[int](), set[int]()
        for signature in file.tables(model, SIGNATURES):
            name = file.text(signature, KEY)
            if name.startswith(PREFILL) and name[len(PREFILL) :].isdecimal():
                chunks.append(int(name[len(PREFILL) :]))
            places |= set(_places(file, signature, subgraphs, axes))
        values = {file.u32(at) for at in places}
    if len(values) != 1 or not chunks:
        raise BundleError("the graph is not as the manifest says", where=path, fix="convert the model again")
    return Layout(tuple(sorted(chunks)), tuple(sorted(places)))


def _axes(kv: KVLayout) -> Iterator[tuple[str, int]]:
    """Which axis of each tensor of the cache has its slots."""
    for template, axes in ((kv.past_key, kv.key_axes or kv.axes), (kv.past_value, kv.axes)):
        for layer in kv.layers:
            yield template.replace("{layer}", str(layer)), axes.index("capacity")


def _places(file: _File, signature: int, subgraphs: Sequence[int], axes: dict[str, int]) -> Iterator[int]:
    tensors = file.tables(subgraphs[file.number(signature, SUBGRAPH)], 0)
    named = [*file.tables(signature, INPUTS), *file.tables(signature, OUTPUTS)]
    wanted = {**dict.fromkeys(masks([file.text(each, 0) for each in named]), 3), **axes}
    for each in named:
        name = file.text(each, 0)
        if name in wanted:
            first, count = file.vector(tensors[file.number(each, 1)], 0)
            if count == 4:
                yield first + 4 * wanted[name]


def sizes(bundle: Bundle, graph: Graph, needs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """The size that each of some prompts needs with so many steps behind it, as the page is told it."""
    found = layout(bundle, graph)
    step = max(STEPS[kv.dtype] for kv in graph.kv)
    told = []
    for tokens, steps in needs:
        slots = -(-max(filled(tokens, found.chunks), tokens + steps) // step) * step
        told.append({"slots": slots, "places": found.places})
    return told


def filled(tokens: int, chunks: Sequence[int]) -> int:
    """Slots that a prompt writes to on its way through chunks, the padding of the last one included."""
    at, most = 0, tokens
    while at < tokens - 1:
        left = tokens - 1 - at
        chunk = max((each for each in chunks if 2 * left > each), default=chunks[0])
        most = max(most, at + chunk)
        at += min(chunk, left)
    return most
