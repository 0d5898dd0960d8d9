"""The TFLite back end of `Ops`: each operation as operators that XNNPACK runs.

    linear      FULLY_CONNECTED with int8 or int4 weights: XNNPACK quantizes each row of activations as it comes
    embed       EMBEDDING_LOOKUP; a tied head reads the same bytes
    attention   DYNAMIC_UPDATE_SLICE into the cache, two BATCH_MATMULs with the query heads of a group as rows of one product
    norm        plain operators

A subgraph has one token count T; the cache's capacity S is resized at run time, so no constant depends on it. Values are
[T, channels]: there is one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgellm.converters.ops import Linear, fusable, fuse
from edgellm.converters.tflite.graph import Subgraph, Tensor, schema
from edgellm.converters.weights import Weight
from edgellm.spec import Activation, AttentionSpec, Rotary

CAPACITY = 64  # slots of the cache in the file; a runtime resizes it


@dataclass
class Positions:
    """Where the tokens of a call stand.

    Attributes:
        ids: int32 [T].
        masks: by window (0 for none), float32 [1, 1, T, S]: 0 where a query sees a slot, else a large negative number.
        rotary: cos and sin [T, 1, frequencies] by rotary.
        start: int32 [4], where the new rows of a cache begin.
    """

    ids: Tensor
    masks: dict[int, Tensor] = field(default_factory=dict)
    rotary: dict[Rotary, tuple[Tensor, Tensor]] = field(default_factory=dict)
    start: Tensor | None = None


class TfliteOps:
    """Lowers operations into a subgraph; one instance a subgraph.

    Args:
        graph: where nodes go.
        tokens: T.
        weight: the tensor of a weight in this subgraph, over data shared with the others.
    """

    def __init__(self, graph: Subgraph, tokens: int, weight: Callable[[Subgraph, Weight], Tensor]) -> None:
        self.graph = graph
        self._tokens = tokens
        self._weight = weight

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
            product = self._matmul(x, whole.weight, whole.bias)
            values += [product] if len(same) == 1 else self.graph.split(product, [each.weight.tensor.shape[0] for each in same])
        return values

    def attention(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, layer: int, positions: Positions) -> Tensor:
        if spec.mask != "causal" or not spec.cached:
            raise NotImplementedError("the TFLite back end has cached causal attention only")
        tokens, groups, size = self._tokens, spec.heads // spec.kv_heads, spec.head_dim
        query = self._reshape(q, (tokens, spec.heads, size))
        key = self._reshape(k, (tokens, spec.kv_heads, size))
        value = self._reshape(v, (tokens, spec.kv_heads, size))
        if spec.rotary is not None:
            query, key = (self._rotate(x, spec.rotary, positions) for x in (query, key))
        query = self._mul(query, np.float32(spec.scale))
        # [KV, groups * T, d]: the queries that share keys are rows of one product
        query = self._reshape(query, (tokens, spec.kv_heads, groups, size))
        query = self._reshape(self._transpose(query, 1, 2, 0, 3), (1, spec.kv_heads, groups * tokens, size))
        keys, values = (self._cached(x, f"kv_cache_{name}_{layer}", spec, positions) for x, name in ((key, "k"), (value, "v")))
        scores = self._batch_matmul(query, keys, transpose=True)
        if spec.softcap is not None:
            capped = self._unary("TANH", self._mul(scores, np.float32(1 / spec.softcap)))
            scores = self._mul(capped, np.float32(spec.softcap))
        slots = keys.shape[2]
        scores = self._reshape(scores, (spec.kv_heads, groups, tokens, slots), (spec.kv_heads, groups, tokens, -1))
        scores = self._add(scores, self._mask(spec.window, positions))
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        shares = self.graph.emit("SOFTMAX", [scores], scores.shape, options)
        rows = (1, spec.kv_heads, groups * tokens)
        mixed = self._batch_matmul(self._reshape(shares, (*rows, slots), (*rows, -1)), values, transpose=False)
        mixed = self._transpose(self._reshape(mixed, (spec.kv_heads, groups, tokens, size)), 2, 0, 1, 3)
        return self._reshape(mixed, (tokens, spec.heads * size))

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
            positions.masks[size] = self.graph.input(name, (1, 1, self._tokens, CAPACITY), np.float32)
        return positions.masks[size]

    def _start(self, positions: Positions) -> Tensor:
        if positions.start is None:
            begin, size = self.graph.vector(0), self.graph.vector(1)
            first = positions.ids
            if self._tokens > 1:
                first = self.graph.emit("SLICE", [first, begin, size], (1,), schema.SliceOptionsT())
            zeros = self.graph.vector(0, 0)
            positions.start = self._concat([zeros, first, self.graph.vector(0)], (4,), axis=0)
        return positions.start

    def _cos_sin(self, rotary: Rotary, positions: Positions) -> tuple[Tensor, Tensor]:
        if rotary not in positions.rotary:
            at = self.graph.emit("CAST", [positions.ids], positions.ids.shape, kind=schema.TensorType.FLOAT32)
            frequencies = np.array(rotary.frequencies, np.float32)
            angles = self._mul(self._reshape(at, (self._tokens, 1, 1)), frequencies)
            pair = (self._unary("COS", angles), self._unary("SIN", angles))
            if rotary.factor != 1:
                pair = (self._mul(pair[0], np.float32(rotary.factor)), self._mul(pair[1], np.float32(rotary.factor)))
            positions.rotary[rotary] = pair
        return positions.rotary[rotary]

    # -- parts ----------------------------------------------------------------------------------------------------

    def _matmul(self, x: Tensor, weight: Weight, bias: Weight | None) -> Tensor:
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        options.asymmetricQuantizeInputs = weight.scheme is not None
        inputs = [x, self._weight(self.graph, weight), None if bias is None else self._weight(self.graph, bias)]
        return self.graph.emit("FULLY_CONNECTED", inputs, (*x.shape[:-1], weight.tensor.shape[0]), options)

    def _cached(self, new: Tensor, name: str, spec: AttentionSpec, positions: Positions) -> Tensor:
        """Append new keys or values [T, KV, d]: the cache [1, KV, S, d]."""
        cache = self.graph.input(name, (1, spec.kv_heads, CAPACITY, spec.head_dim), np.float32)
        rows = self._reshape(self._transpose(new, 1, 0, 2), (1, spec.kv_heads, self._tokens, spec.head_dim))
        updated = self.graph.emit("DYNAMIC_UPDATE_SLICE", [cache, rows, self._start(positions)], cache.shape)
        self.graph.output(name, updated)
        return updated

    def _rotate(self, x: Tensor, rotary: Rotary, positions: Positions) -> Tensor:
        """Rotate x [T, heads, d]."""
        half, rest = rotary.dims // 2, x.shape[-1] - rotary.dims
        parts = self.graph.split(x, [half, half] + [rest] * (rest > 0))
        cos, sin = self._cos_sin(rotary, positions)
        first = self._sub(self._mul(parts[0], cos), self._mul(parts[1], sin))
        second = self._add(self._mul(parts[1], cos), self._mul(parts[0], sin))
        return self._concat([first, second, *parts[2:]], x.shape, axis=len(x.shape) - 1)

    def _batch_matmul(self, a: Tensor, b: Tensor, *, transpose: bool) -> Tensor:
        options = schema.BatchMatMulOptionsT()
        options.adjY = transpose
        return self.graph.emit("BATCH_MATMUL", [a, b], (*a.shape[:-1], b.shape[2 if transpose else 3]), options)

    def _mul(self, a: Tensor, b: Tensor | np.ndarray | np.float32) -> Tensor:
        return self._binary("MUL", a, b, schema.MulOptionsT())

    def _add(self, a: Tensor, b: Tensor | np.float32) -> Tensor:
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

    def _concat(self, parts: Sequence[Tensor], shape: tuple[int, ...], axis: int) -> Tensor:
        options = schema.ConcatenationOptionsT()
        options.axis = axis
        return self.graph.emit("CONCATENATION", list(parts), shape, options)


def _keep_dims() -> Any:
    options = schema.ReducerOptionsT()
    options.keepDims = True
    return options
