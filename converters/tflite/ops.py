"""The TFLite back end of `Ops`: each operation as operators that XNNPACK runs.

    linear      FULLY_CONNECTED with int8 or int4 weights: XNNPACK quantizes each row of activations as it comes; with int16
                activations, whose scales are fixed, QUANTIZE stands before it and DEQUANTIZE behind
    embed       EMBEDDING_LOOKUP; a tied head reads the same bytes
    attention   DYNAMIC_UPDATE_SLICE into the cache, two BATCH_MATMULs with the query heads of a group as rows of one product;
                an 8-bit cache keeps its keys transposed, and is made float32 layer by layer as it is read
    norm        plain operators

A subgraph has one token count T; the cache's capacity S is resized at run time, so no constant depends on it. Values are
[T, channels]: there is one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.ops import Linear, fusable, fuse
from edgellm.converters.tflite.graph import Grid, Subgraph, Tensor, schema
from edgellm.converters.weights import Weight
from edgellm.scheme import CacheGrid
from edgellm.spec import Activation, AttentionSpec, Rotary

CAPACITY = 64  # slots of the cache in the file; a runtime resizes it


@dataclass
class Positions:
    """Where the tokens of a call stand.

    Attributes:
        ids: int32 [T].
        masks: by window (0 for none), float32 [1, 1, T, S]: 0 where a query sees a slot, else a large negative number.
        rotary: cos and sin [T, 1, head_dim] by rotary and head_dim.
        starts: int32 [4], where new rows begin in a cache, by the axis of its slots.
    """

    ids: Tensor
    masks: dict[int, Tensor] = field(default_factory=dict)
    rotary: dict[tuple[Rotary, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    starts: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A linear's result that was cut out of the product of several, from channel `start` on."""

    value: Tensor
    product: Tensor
    start: int


class TfliteOps:
    """Lowers operations into a subgraph; one instance a subgraph.

    Args:
        graph: where nodes go.
        tokens: T.
        weight: the tensor of a weight in this subgraph, over data shared with the others.
        grids: of the cache, by layer, where keys and values are kept in 8 bit.
        capacity: slots of the cache in the file.
        fixed: scales of what goes into a product in 16 bits and comes out of it, by the name of its weight.
    """

    def __init__(
        self,
        graph: Subgraph,
        tokens: int,
        weight: Callable[[Subgraph, Weight], Tensor],
        grids: Sequence[CacheGrid] = (),
        capacity: int = CAPACITY,
        fixed: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    ) -> None:
        self.graph = graph
        self._capacity = capacity
        self._grids = grids
        self._tokens = tokens
        self._weight = weight
        self._fixed = fixed
        self._codes: dict[tuple[int, float], tuple[Tensor, Tensor]] = {}  # values, by id and scale, and their codes of 16 bits
        self._parts: dict[int, Part] = {}  # by the id of their value, which they keep alive

    # -- Ops ------------------------------------------------------------------------------------------------------

    def embed(self, ids: Tensor, table: Weight, scale: float) -> Tensor:
        width = table.tensor.shape[1]
        x = self.graph.emit(
            "EMBEDDING_LOOKUP",
            [ids, self._weight(self.graph, table)],
            (self._tokens, width),
            kind=schema.TensorType.FLOAT32,
        )
        return x if scale == 1 else self._mul(x, np.float32(scale))

    def norm(self, x: Tensor, gamma: Weight, eps: float, heads: int = 1) -> Tensor:
        width = x.shape[-1]
        if heads > 1:
            x = self._reshape(x, (x.shape[0], heads, width // heads))
        mean = self.graph.emit("MEAN", [self._mul(x, x), self.graph.vector(len(x.shape) - 1)], (*x.shape[:-1], 1), _keep_dims())
        root = self.graph.emit("RSQRT", [self._add(mean, np.float32(eps))], mean.shape)
        normed = self._mul(self._mul(x, root), self._weight(self.graph, gamma))
        return normed if heads == 1 else self._reshape(normed, (x.shape[0], width))

    def linears(self, x: Tensor, linears: Sequence[Linear]) -> list[Tensor]:
        values: list[Tensor] = []
        for same in fusable(linears):
            whole = fuse(same)
            product, start = self._matmul(x, whole.weight, whole.bias), 0
            for each in same:
                width = each.weight.tensor.shape[0]
                part = self._slice(product, start, width)
                self._parts[id(part)] = Part(part, product, start)
                values.append(part)
                start += width
        return values

    def attention(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, layer: int, positions: Positions) -> Tensor:
        grid = self._grids[layer] if self._grids else None
        query, key, value = self._heads(q, k, v, spec, grid, positions)
        keys = self._appended(key, f"kv_cache_k_{layer}", positions, codes=grid is not None, transposed=grid is not None)
        values = self._appended(value, f"kv_cache_v_{layer}", positions, codes=grid is not None, transposed=False)
        shares = self._shares(self._batch_matmul(query, keys, transpose=grid is None), spec, positions)
        mixed = self._batch_matmul(shares, values, transpose=False)
        return self._joined_heads(mixed if grid is None else self._mul(mixed, grid.values[:, None]), spec)

    def gated(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        if activation == "silu":
            return self._mul(self._mul(gate, self._unary("LOGISTIC", gate)), up)
        options = schema.GeluOptionsT()
        options.approximate = activation == "gelu_tanh"
        return self._mul(self.graph.emit("GELU", [gate], gate.shape, options), up)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self._add(a, b)

    def select(self, x: Tensor, positions: Positions) -> Tensor:
        return x  # a signature gives logits of all its tokens, or of none: then no output needs what is computed from x

    def logits(self, x: Tensor, head: Weight, scale: float, softcap: float | None) -> Tensor:
        y = self._matmul(x, head, None)
        if scale != 1:
            y = self._mul(y, np.float32(scale))
        if softcap is not None:
            y = self._mul(self._unary("TANH", self._mul(y, np.float32(1 / softcap))), np.float32(softcap))
        return y

    # -- positions ------------------------------------------------------------------------------------------------

    def positions(self) -> Positions:
        """Make the inputs that say where the tokens stand; masks come with the first attention that needs them."""
        ids = self.graph.input("input_pos", (self._tokens,), np.int32)
        return Positions(ids)

    def _mask(self, window: int | None, positions: Positions) -> Tensor:
        size = window or 0
        if size not in positions.masks:
            name = f"mask_{size}" if size else "mask"
            positions.masks[size] = self.graph.input(name, (1, 1, self._tokens, self._capacity), np.float32)
        return positions.masks[size]

    def _start(self, axis: int, positions: Positions) -> Tensor:
        """Where new rows begin in a cache whose slots lie along `axis`."""
        if axis not in positions.starts:
            first, zero = positions.ids, self.graph.vector(0)
            if self._tokens > 1:
                first = self.graph.emit("SLICE", [first, zero, self.graph.vector(1)], (1,), schema.SliceOptionsT())
            positions.starts[axis] = self._concat([first if each == axis else zero for each in range(4)], (4,), axis=0)
        return positions.starts[axis]

    def _cos_sin(self, rotary: Rotary, size: int, positions: Positions) -> tuple[Tensor, Tensor]:
        """cos and sin [T, 1, size], as `_rotate` wants them; made once a call."""
        key = rotary, size
        if key not in positions.rotary:
            at = self.graph.emit("CAST", [positions.ids], positions.ids.shape, kind=schema.TensorType.FLOAT32)
            rest = np.zeros(size - rotary.dims, np.float32)  # channels that do not turn: an angle of 0
            half = np.array(rotary.frequencies, np.float32)
            angles = self._mul(self._reshape(at, (self._tokens, 1, 1)), np.concatenate([half, half, rest]))
            signs = np.repeat(np.array([-1, 1, 0], np.float32), [len(half), len(half), len(rest)])
            factors = np.where(signs == 0, np.float32(1), np.float32(rotary.factor))
            cos, sin = self._unary("COS", angles), self._mul(self._unary("SIN", angles), signs * np.float32(rotary.factor))
            positions.rotary[key] = (cos if rotary.factor == 1 else self._mul(cos, factors)), sin
        return positions.rotary[key]

    # -- parts ----------------------------------------------------------------------------------------------------

    def _matmul(self, x: Tensor, weight: Weight, bias: Weight | None) -> Tensor:
        if weight.scheme is not None and weight.activations == 16:
            return self._int16_product(x, weight, bias)
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        options.asymmetricQuantizeInputs = weight.scheme is not None
        inputs = [x, self._weight(self.graph, weight), None if bias is None else self._weight(self.graph, bias)]
        return self.graph.emit("FULLY_CONNECTED", inputs, (*x.shape[:-1], weight.tensor.shape[0]), options)

    def _int16_product(self, x: Tensor, weight: Weight, bias: Weight | None) -> Tensor:
        """A product of 16-bit inputs. Its bias would be a code whose scale is known only when the weight was rounded."""
        into, out = self._fixed[weight.name]
        shape, kind = (*x.shape[:-1], weight.tensor.shape[0]), schema.TensorType.INT16
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        if (id(x), into) not in self._codes:
            codes = self.graph.emit("QUANTIZE", [x], x.shape, kind=kind, grid=Grid(np.array([into], np.float32)))
            self._codes[id(x), into] = x, codes
        inputs = [self._codes[id(x), into][1], self._weight(self.graph, weight), None]
        y = self.graph.emit("FULLY_CONNECTED", inputs, shape, options, kind, Grid(np.array([out], np.float32)))
        y = self.graph.emit("DEQUANTIZE", [y], shape, kind=schema.TensorType.FLOAT32)
        return y if bias is None else self._add(y, self._weight(self.graph, bias))

    def _appended(self, new: Tensor, name: str, positions: Positions, *, codes: bool, transposed: bool) -> Tensor:
        """Append new keys or values [T, KV, d] to their cache; all of it as float32 [1, KV, S, d], or [1, KV, d, S]."""
        tokens, heads, size = new.shape
        if transposed:
            rows = self._reshape(self._transpose(new, 1, 2, 0), (1, heads, size, tokens))
            shape, axis = (1, heads, size, self._capacity), 3
        else:
            rows = self._reshape(self._transpose(new, 1, 0, 2), (1, heads, tokens, size))
            shape, axis = (1, heads, self._capacity, size), 2
        grid = None
        if codes:
            grid = Grid(np.ones(1, np.float32))  # the channels' scales were applied
            rows = self.graph.emit("QUANTIZE", [rows], rows.shape, kind=schema.TensorType.INT8, grid=grid)
        cache = self.graph.input(name, shape, np.int8 if codes else np.float32, grid)
        updated = self.graph.emit("DYNAMIC_UPDATE_SLICE", [cache, rows, self._start(axis, positions)], shape, grid=grid)
        self.graph.output(name, updated)
        return self.graph.emit("DEQUANTIZE", [updated], shape, kind=schema.TensorType.FLOAT32) if codes else updated

    def _heads(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, grid: CacheGrid | None, positions: Positions
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated, scaled queries [1, KV, groups * T, d], and the new keys and values [T, KV, d] as the cache has them.

        The queries that share keys are rows of one product.
        """
        if spec.mask != "causal" or not spec.cached:
            raise NotImplementedError("the TFLite back end has cached causal attention only")
        tokens, groups, size = self._tokens, spec.heads // spec.kv_heads, spec.head_dim
        both = self._reshape(self._joined(q, k), (tokens, spec.heads + spec.kv_heads, size))
        value = self._reshape(v, (tokens, spec.kv_heads, size))
        if spec.rotary is not None:
            both = self._rotate(both, spec.rotary, positions)
        both = self._mul(both, _factors(spec, grid))
        key = self._slice(both, spec.heads, spec.kv_heads, axis=1)
        if grid is not None:
            key, value = self._add(key, -grid.centers / grid.keys), self._mul(value, 1 / grid.values)
        query = self._reshape(self._slice(both, 0, spec.heads, axis=1), (tokens, spec.kv_heads, groups, size))
        return self._reshape(self._transpose(query, 1, 2, 0, 3), (1, spec.kv_heads, groups * tokens, size)), key, value

    def _shares(self, scores: Tensor, spec: AttentionSpec, positions: Positions) -> Tensor:
        """What each slot's value counts for, from scores [1, KV, groups * T, S]: capped, masked, softmax."""
        if spec.softcap is not None:
            capped = self._unary("TANH", self._mul(scores, np.float32(1 / spec.softcap)))
            scores = self._mul(capped, np.float32(spec.softcap))
        grouped = (spec.kv_heads, spec.heads // spec.kv_heads, self._tokens)
        rows, slots = scores.shape[:3], scores.shape[3]
        scores = self._add(self._reshape(scores, (*grouped, slots), (*grouped, -1)), self._mask(spec.window, positions))
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        return self._reshape(self.graph.emit("SOFTMAX", [scores], scores.shape, options), (*rows, slots), (*rows, -1))

    def _joined_heads(self, mixed: Tensor, spec: AttentionSpec) -> Tensor:
        """[1, KV, groups * T, d] as [T, heads * d]."""
        grouped = (spec.kv_heads, spec.heads // spec.kv_heads, self._tokens, spec.head_dim)
        return self._reshape(
            self._transpose(self._reshape(mixed, grouped), 2, 0, 1, 3), (self._tokens, spec.heads * spec.head_dim)
        )

    def _joined(self, q: Tensor, k: Tensor) -> Tensor:
        """q [T, a] and k [T, b] side by side, [T, a + b]: cut out of their product in one piece where it has them so."""
        width = q.shape[1] + k.shape[1]
        first, second = self._parts.get(id(q)), self._parts.get(id(k))
        if first is not None and second is not None and first.product is second.product:
            return self._slice(first.product, first.start, width)
        return self._concat([q, k], (self._tokens, width), axis=1)

    def _rotate(self, x: Tensor, rotary: Rotary, positions: Positions) -> Tensor:
        """Rotate x [T, heads, d]: x * cos + (its halves swapped) * sin, the sign of the first half being in the sine."""
        half = rotary.dims // 2
        cos, sin = self._cos_sin(rotary, x.shape[-1], positions)
        parts = [self._slice(x, half, half), self._slice(x, 0, half)]
        if x.shape[-1] > rotary.dims:
            parts.append(self._slice(x, rotary.dims, x.shape[-1] - rotary.dims))
        swapped = self._concat(parts, x.shape, axis=2)
        return self._add(self._mul(x, cos), self._mul(swapped, sin))

    def _batch_matmul(self, a: Tensor, b: Tensor, *, transpose: bool) -> Tensor:
        options = schema.BatchMatMulOptionsT()
        options.adjY = transpose
        return self.graph.emit("BATCH_MATMUL", [a, b], (*a.shape[:-1], b.shape[2 if transpose else 3]), options)

    def _mul(self, a: Tensor, b: Tensor | np.ndarray | np.float32) -> Tensor:
        return self._binary("MUL", a, b, schema.MulOptionsT())

    def _add(self, a: Tensor, b: Tensor | NDArray[np.float32] | np.float32) -> Tensor:
        return self._binary("ADD", a, b, schema.AddOptionsT())

    def _sub(self, a: Tensor, b: Tensor) -> Tensor:
        return self._binary("SUB", a, b, schema.SubOptionsT())

    def _binary(self, op: str, a: Tensor, b: Tensor | np.ndarray | np.float32, options: object) -> Tensor:
        other = b if isinstance(b, Tensor) else self.graph.constant(np.asarray(b, np.float32))
        shape = np.broadcast_shapes(a.shape, other.shape)
        return self.graph.emit(op, [a, other], shape, options)

    def _unary(self, op: str, x: Tensor) -> Tensor:
        return self.graph.emit(op, [x], x.shape)

    def _reshape(self, x: Tensor, shape: tuple[int, ...], target: tuple[int, ...] | None = None) -> Tensor:
        """`target` has -1 for an axis that is resized at run time."""
        if shape == x.shape:
            return x
        return self.graph.emit("RESHAPE", [x, self.graph.vector(*(target or shape))], shape, schema.ReshapeOptionsT())

    def _transpose(self, x: Tensor, *axes: int) -> Tensor:
        moved = [axis for axis in axes if x.shape[axis] != 1]
        shape = tuple(x.shape[axis] for axis in axes)
        if moved == sorted(moved):  # only axes of length 1 move: the same bytes
            return self._reshape(x, shape)
        return self.graph.emit("TRANSPOSE", [x, self.graph.vector(*axes)], shape, schema.TransposeOptionsT())

    def _slice(self, x: Tensor, start: int, length: int, axis: int = -1) -> Tensor:
        """Part of one axis. XNNPACK takes SLICE, and leaves the operators that split unevenly to slower hands."""
        axis %= len(x.shape)
        if length == x.shape[axis]:
            return x
        begin, shape = [0] * len(x.shape), list(x.shape)
        begin[axis], shape[axis] = start, length
        return self.graph.emit(
            "SLICE", [x, self.graph.vector(*begin), self.graph.vector(*shape)], shape, schema.SliceOptionsT()
        )

    def _concat(self, parts: Sequence[Tensor], shape: tuple[int, ...], axis: int) -> Tensor:
        options = schema.ConcatenationOptionsT()
        options.axis = axis
        return self.graph.emit("CONCATENATION", list(parts), shape, options)


def _factors(spec: AttentionSpec, grid: CacheGrid | None) -> NDArray[np.float32]:
    """What rotated queries and keys are multiplied with, [heads + kv_heads, d or 1]: the scale of scores, and of codes."""
    scales = np.ones((spec.kv_heads, 1), np.float32) if grid is None else grid.keys
    queries = np.repeat(scales, spec.heads // spec.kv_heads, axis=0) * np.float32(spec.scale)
    return np.concatenate([queries, 1 / scales])


def _keep_dims() -> Any:
    options = schema.ReducerOptionsT()
    options.keepDims = True
    return options
