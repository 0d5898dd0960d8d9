"""A bundle's model as the graph that LiteRT-LM runs, made of the bundle's own quantized weights, byte for byte.

    decode          T = 1               logits float32 [1, 1, vocab]
    prefill_T       T = 8, 128          no logits

Each takes `tokens` int32 [1, T], `input_pos` int32 [T], `mask` float32 [1, 1, T, S] (0 where a query sees a slot, else a large
negative number) and per layer `kv_cache_k_N`, `kv_cache_v_N` float32 [1, kv_heads, S, head_dim], which it returns with the new
tokens in them. S is fixed. LiteRT-LM fills a prefill that is longer than its tokens up with position 0 and hidden slots, and
writes such padding behind the tokens: S has room for the largest prefill behind the longest context.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.converters.data import ALIGNMENT, DataLayout, OnBytes, Place
from edgellm.converters.decoder import decode
from edgellm.converters.tflite.graph import Buffer, Grid, Subgraph, Tensor, schema, serialize
from edgellm.converters.tflite.ops import Positions, TfliteOps
from edgellm.converters.tflite.stored import StoredWeight, read_weights
from edgellm.converters.weights import Array, LazyTensor, Weight, on_grids
from edgellm.errors import BundleError
from edgellm.scheme import Recipe
from edgellm.spec import ModelSpec

SIGNATURES = (("decode", 1), ("prefill_8", 8), ("prefill_128", 128))
LARGEST = max(tokens for _, tokens in SIGNATURES)
HIDDEN = np.float32(-45824.0)  # what LiteRT-LM hides a slot with: finite in float16 too
CHUNK = 1 << 20


@dataclass(frozen=True)
class LitertlmPlan:
    """A graph that is complete, and which bytes of the bundle's graph its weights are.

    Attributes:
        copies: where the bytes lie in the bundle's graph, and where behind `base`.
        data_size: bytes of all weights, each from a page's start on.
    """

    subgraphs: tuple[Subgraph, ...]
    copies: tuple[tuple[Place, Place], ...]
    tables: bytes
    base: int
    data_size: int

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.base + self.data_size

    @property
    def copied(self) -> int:
        """Bytes of the weights."""
        return sum(source.length for source, _ in self.copies)

    def write(self, source: Path, path: Path, on_bytes: OnBytes) -> None:
        """Write the graph to `path`, its weights from the bundle's graph `source`.

        Args:
            on_bytes: called with a word and the bytes just copied.

        Raises:
            OSError: the disk is full, or a file cannot be read or written.
        """
        buffer = memoryview(bytearray(CHUNK))
        with source.open("rb") as weights, path.open("wb") as file:
            file.write(self.tables)
            for begin, end in self.copies:
                weights.seek(begin.offset)
                file.seek(self.base + end.offset)
                left = begin.length
                while left:
                    count = weights.readinto(buffer[: min(left, CHUNK)])
                    if not count:
                        raise OSError(errno.EIO, f"{source} has become shorter")
                    file.write(buffer[:count])
                    left -= count
                    on_bytes("weights", count)
            file.truncate(self.size)


def plan(spec: ModelSpec, recipe: Recipe, source: Path, max_context: int) -> LitertlmPlan:
    """Build the subgraphs over the weights of a bundle's graph.

    Args:
        spec, recipe: the bundle's.
        source: its .tflite, found sound.
        max_context: tokens that prompt and answer may have together.

    Raises:
        BundleError: the graph lacks a weight of the model.
    """
    store = _Store(source, read_weights(source))
    shared: dict[tuple[str, bytes], Buffer] = {}
    shapes = dict(_shapes(spec))
    weights = on_grids(lambda name: _Shape(shapes[name]), recipe)
    subgraphs = []
    for name, tokens in SIGNATURES:
        graph = Subgraph(name, shared)
        ops = LitertlmOps(graph, tokens, store.tensor, capacity=max_context + LARGEST)
        ids = graph.input("tokens", (1, tokens), np.int32)
        logits = decode(spec, weights, ops, ids, ops.positions())
        if tokens == 1:
            graph.output("logits", logits)
        subgraphs.append(graph)
    base = -(-len(serialize(subgraphs, 0)) // ALIGNMENT) * ALIGNMENT
    tables = serialize(subgraphs, base)
    return LitertlmPlan(tuple(subgraphs), tuple(store.copies), tables, base, store.layout.size)


class LitertlmOps(TfliteOps):
    """`TfliteOps` in LiteRT-LM's contract: a float32 cache of a fixed size, one mask for all layers, and a batch axis."""

    def embed(self, ids: Tensor, table: Weight, scale: float) -> Tensor:
        return super().embed(self._reshape(ids, (self._tokens,)), table, scale)

    def logits(self, x: Tensor, head: Weight, scale: float, softcap: float | None) -> Tensor:
        y = super().logits(x, head, scale, softcap)
        return self._reshape(y, (1, *y.shape))

    def positions(self) -> Positions:
        """Make the inputs that say where the tokens stand."""
        positions = super().positions()
        positions.masks[0] = self.graph.input("mask", (1, 1, self._tokens, self._capacity), np.float32)
        return positions

    def _mask(self, window: int | None, positions: Positions) -> Tensor:
        size = window or 0
        if size not in positions.masks:
            # 1 for a slot at or before position - window, 0 for a later one
            at = self.graph.emit("CAST", [positions.ids], positions.ids.shape, kind=schema.TensorType.FLOAT32)
            slots = self.graph.constant(np.arange(self._capacity, dtype=np.float32) + np.float32(size - 1))
            behind = self._sub(self._reshape(at, (1, 1, self._tokens, 1)), slots)
            behind = self._binary("MINIMUM", behind, np.float32(1), schema.MaximumMinimumOptionsT())
            behind = self._binary("MAXIMUM", behind, np.float32(0), schema.MaximumMinimumOptionsT())
            local = self._mul(behind, HIDDEN)
            positions.masks[size] = self._binary("MINIMUM", positions.masks[0], local, schema.MaximumMinimumOptionsT())
        return positions.masks[size]


class _Store:
    """Tensors over the bytes that the bundle has: codes, scales and floats, each copied once."""

    def __init__(self, source: Path, stored: Mapping[str, StoredWeight]) -> None:
        self.layout = DataLayout()
        self.copies: list[tuple[Place, Place]] = []
        self._source, self._stored = source, stored
        self._buffers: dict[int, Buffer] = {}
        self._tensors: dict[tuple[int, str], Tensor] = {}

    def tensor(self, graph: Subgraph, weight: Weight) -> Tensor:
        """A weight in a subgraph.

        Raises:
            BundleError: the bundle's graph has none of that name, or of another shape.
        """
        key = (id(graph), weight.name)
        if key not in self._tensors:
            stored = self._stored.get(weight.name)
            if stored is None or stored.shape != weight.tensor.shape:
                raise BundleError(
                    f"the graph has no weight '{weight.name}' of the shape {list(weight.tensor.shape)}",
                    where=self._source,
                    fix="convert the model again",
                )
            self._tensors[key] = self._made(weight.name, stored)
        return self._tensors[key]

    def _made(self, name: str, stored: StoredWeight) -> Tensor:
        grid = None
        if stored.scales is not None:
            grid = Grid(stored.scales)
        elif stored.block_scales is not None:
            grid = Grid(self._made(name + ".scales", stored.block_scales), stored.block)
        return Tensor(name, stored.shape, stored.type, self._buffer(stored.place), grid)

    def _buffer(self, place: Place) -> Buffer:
        if place.offset not in self._buffers:
            target = self.layout.reserve(place.length)
            self.copies.append((place, target))
            self._buffers[place.offset] = Buffer(place=target)
        return self._buffers[place.offset]


class _Shape(LazyTensor):
    """A tensor of which the graph needs the shape only: its bytes are in the bundle."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def rows(self, start: int, stop: int) -> Array:
        raise NotImplementedError("the bundle's bytes are copied, not read")


def _shapes(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Canonical names of all weights that a model may have, with their shapes."""
    hidden, wide = spec.hidden_size, spec.intermediate_size
    yield "embed.weight", (spec.vocab_size, hidden)
    yield "head.weight", (spec.vocab_size, hidden)
    yield "norm.weight", (hidden,)
    yield "final.weight", (hidden, hidden)
    for layer in range(len(spec.layers)):
        kind = spec.attention(layer)
        queries, keys = kind.heads * kind.head_dim, kind.kv_heads * kind.head_dim
        whole = kind.qk_norm == "width"
        linears = {
            "q": (queries, hidden),
            "k": (keys, hidden),
            "v": (keys, hidden),
            "o": (hidden, queries),
            "gate": (wide, hidden),
            "up": (wide, hidden),
            "down": (hidden, wide),
        }
        norms = dict.fromkeys(("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm"), hidden)
        norms |= {"q_norm": queries if whole else kind.head_dim, "k_norm": keys if whole else kind.head_dim}
        for name, shape in linears.items():
            yield f"layers.{layer}.{name}.weight", shape
            yield f"layers.{layer}.{name}.bias", shape[:1]
        for name, width in norms.items():
            yield f"layers.{layer}.{name}.weight", (width,)
