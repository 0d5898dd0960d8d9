"""The ONNX back end of `Ops`: each operation as the best operator that onnxruntime has for it on a CPU.

    attention   GroupQueryAttention, packed QKV where the three were fused, its own rotary where it takes the sizes
    linear      MatMulNBits (4 and 8 bit), FusedMatMul (float32); neighbours of one scheme become one product
    add, norm   SkipSimplifiedLayerNormalization where a sum is normed, which is nearly always
    embed       GatherBlockQuantized; a tied head reads the same bytes

Operator specifications: onnxruntime's contrib operators, domain com.microsoft, version 1.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from edgellm.converters.onnx.graph import CONTRIB, GraphBuilder
from edgellm.converters.ops import Linear, fusable, fuse
from edgellm.converters.weights import LazyTensor, Weight
from edgellm.scheme import CacheGrid, Scheme
from edgellm.spec import Activation, AttentionSpec, Rotary

END = np.iinfo(np.int64).max
ACTIVATION = {"silu": ("QuickGelu", CONTRIB), "gelu": ("Gelu", ""), "gelu_tanh": ("FastGelu", CONTRIB)}


@dataclass(eq=False)
class Value:
    """A tensor of the graph, named as soon as a node needs it.

    A sum waits for a norm to be fused with; the parts of a fused product wait for an operator that takes them together.
    """

    name: str | None = None
    sum: tuple[Value, Value] | None = None
    fused: Fused | None = None


@dataclass(eq=False)
class Fused:
    """One product that stands for several linears: `name` is [B, T, sum(widths)]."""

    name: str
    widths: tuple[int, ...]
    parts: list[Value] = field(default_factory=list)


@dataclass(frozen=True)
class Positions:
    """Names of the tensors that say where the new tokens stand."""

    seqlens_k: str
    total: str
    ids: str
    logits_start: str


class OnnxOps:
    """Lowers operations into a graph; one instance a graph.

    Args:
        graph: where nodes and initializers go.
        max_context: rows of the rotary tables.
        levels: accuracy_level of a MatMulNBits, by the bits of its inputs.
        grids: of the cache, by layer, where keys and values are kept in 8 bit.
    """

    def __init__(
        self, graph: GraphBuilder, max_context: int, levels: Mapping[int, int], grids: Sequence[CacheGrid] = ()
    ) -> None:
        self._grids = grids
        self.graph = graph
        self._max_context = max_context
        self._levels = levels
        self._rotary: dict[Rotary, tuple[str, str]] = {}

    # -- Ops ------------------------------------------------------------------------------------------------------

    def embed(self, ids: Value, table: Weight, scale: float) -> Value:
        if table.scheme is None:
            x = self.graph.emit("Gather", [self.graph.float_tensor(table.name, table.tensor), self.name(ids)], axis=0)
        else:
            x = self._gather_quantized(self.name(ids), table, table.scheme)
        return Value(x if scale == 1 else self.graph.emit("Mul", [x, self.graph.constant(np.float32(scale))]))

    def norm(self, x: Value, gamma: Weight, eps: float, heads: int = 1) -> Value:
        weight = self.graph.float_tensor(gamma.name, gamma.tensor)
        if heads > 1:
            grouped = self.graph.emit("Reshape", [self.name(x), self.graph.vector(0, 0, heads, -1)])
            normed = self.graph.emit("SimplifiedLayerNormalization", [grouped, weight], axis=-1, epsilon=eps)
            return Value(self.graph.emit("Reshape", [normed, self.graph.vector(0, 0, -1)]))
        if x.name is None and x.sum is not None:
            a, b = map(self.name, x.sum)
            normed, x.name = self.graph.new("norm"), self.graph.new("sum")
            self.graph.node("SkipSimplifiedLayerNormalization", [a, b, weight], [normed, "", "", x.name], CONTRIB, epsilon=eps)
            return Value(normed)
        return Value(self.graph.emit("SimplifiedLayerNormalization", [self.name(x), weight], axis=-1, epsilon=eps))

    def linears(self, x: Value, linears: Sequence[Linear]) -> list[Value]:
        values: list[Value] = []
        for same in fusable(linears):
            values += self._fused_linear(x, same)
        return values

    def attention(self, q: Value, k: Value, v: Value, spec: AttentionSpec, layer: int, positions: Positions) -> Value:
        if spec.mask != "causal" or not spec.cached:
            raise NotImplementedError("the ONNX back end has cached causal attention only")
        rotary = spec.rotary
        native_rotary = rotary is not None and spec.head_dim % 16 == 0 and rotary.dims % 16 == 0
        padded = -(-spec.head_dim // 8) * 8  # GroupQueryAttention takes head sizes that are multiples of 8
        packed = self._packed(q, k, v)
        if packed is not None and (native_rotary or rotary is None) and padded == spec.head_dim:
            inputs = [packed, "", ""]
        else:
            if rotary is not None and not native_rotary:
                q, k = (self._rotate(x, n, spec, rotary, positions) for x, n in ((q, spec.heads), (k, spec.kv_heads)))
            heads = (spec.heads, spec.kv_heads, spec.kv_heads)
            inputs = [self._pad_heads(x, n, spec.head_dim, padded) for x, n in zip((q, k, v), heads, strict=True)]
        cos, sin = self._rotary_tables(rotary) if rotary is not None and native_rotary else ("", "")
        past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        present = [f"present.{layer}.key", f"present.{layer}.value"]
        inputs += [*past, positions.seqlens_k, positions.total, cos, sin]
        quantized: dict[str, int | str] = {}
        if self._grids:
            grid = self._grids[layer]
            inputs += ["", "", "", *(self.graph.constant(_padded(scales, padded)) for scales in (grid.keys, grid.values))]
            quantized = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        output = self.graph.new("attention")
        self.graph.node(
            "GroupQueryAttention",
            inputs,
            [output, *present],
            CONTRIB,
            num_heads=spec.heads,
            kv_num_heads=spec.kv_heads,
            scale=spec.scale,
            do_rotary=int(native_rotary),
            local_window_size=-1 if spec.window is None else spec.window,
            softcap=spec.softcap or 0.0,
            **quantized,
        )
        return Value(self._unpad_heads(output, spec.heads, spec.head_dim, padded))

    def gated(self, gate: Value, up: Value, activation: Activation) -> Value:
        op, domain = ACTIVATION[activation]
        if activation == "silu":  # x * sigmoid(alpha * x) with alpha 1
            active = self.graph.emit(op, [self.name(gate)], domain, alpha=1.0)
        else:
            active = self.graph.emit(op, [self.name(gate)], domain)
        return Value(self.graph.emit("Mul", [active, self.name(up)]))

    def add(self, a: Value, b: Value) -> Value:
        return Value(sum=(a, b))

    def select(self, x: Value, positions: Positions) -> Value:
        end, axis = self.graph.vector(END), self.graph.vector(1)
        return Value(self.graph.emit("Slice", [self.name(x), positions.logits_start, end, axis]))

    def logits(self, x: Value, head: Weight, scale: float, softcap: float | None) -> Value:
        y = self._matmul(self.name(x), head, None)
        if scale != 1:
            y = self.graph.emit("Mul", [y, self.graph.constant(np.float32(scale))])
        if softcap is not None:
            cap = self.graph.constant(np.float32(softcap))
            y = self.graph.emit("Mul", [self.graph.emit("Tanh", [self.graph.emit("Div", [y, cap])]), cap])
        return Value(y)

    # -- positions ------------------------------------------------------------------------------------------------

    def positions(self, input_ids: str, attention_mask: str, logits_start: str) -> Positions:
        """Derive what the attentions need from ids [B, T] and the mask [B, past + T] of ones."""
        one = self.graph.vector(1)
        lengths = self.graph.emit("ReduceSum", [attention_mask, one], keepdims=0)
        seqlens = self.graph.emit("Cast", [self.graph.emit("Sub", [lengths, one])], to=TensorProto.INT32)
        total = self.graph.emit("Shape", [attention_mask], start=1, end=2)
        new = self.graph.emit("Shape", [input_ids], start=1, end=2)
        past = self.graph.emit("Squeeze", [self.graph.emit("Sub", [total, new])])
        ids = self.graph.emit("Range", [past, self.graph.emit("Squeeze", [total]), self.graph.constant(np.int64(1))])
        ids = self.graph.emit("Unsqueeze", [ids, self.graph.vector(0)])
        return Positions(seqlens, self.graph.emit("Cast", [total], to=TensorProto.INT32), ids, logits_start)

    def name(self, value: Value) -> str:
        """The value's tensor name; emits what was waiting to be fused."""
        if value.name is None and value.sum is not None:
            value.name = self.graph.emit("Add", [self.name(value.sum[0]), self.name(value.sum[1])])
        if value.name is None and value.fused is not None:
            fused = value.fused
            names = [self.graph.new("part") for _ in fused.parts]
            self.graph.node("Split", [fused.name, self.graph.vector(*fused.widths)], names, axis=-1)
            for part, name in zip(fused.parts, names, strict=True):
                part.name = name
        if value.name is None:
            raise ValueError("a value without an origin")
        return value.name

    # -- linears --------------------------------------------------------------------------------------------------

    def _fused_linear(self, x: Value, linears: list[Linear]) -> list[Value]:
        whole = fuse(linears)
        bias = None if whole.bias is None else self.graph.float_tensor(whole.bias.name, whole.bias.tensor)
        product = self._matmul(self.name(x), whole.weight, bias)
        if len(linears) == 1:
            return [Value(product)]
        fused = Fused(product, tuple(linear.weight.tensor.shape[0] for linear in linears))
        fused.parts += [Value(fused=fused) for _ in linears]
        return fused.parts

    def _matmul(self, x: str, weight: Weight, bias: str | None) -> str:
        name = weight.name
        n, k = weight.tensor.shape
        if weight.scheme is None:
            y = self.graph.emit("FusedMatMul", [x, self.graph.float_tensor(name, weight.tensor)], CONTRIB, transB=1)
            return y if bias is None else self.graph.emit("Add", [y, bias])
        job = self.graph.quantized(weight, weight.scheme)
        scheme = weight.scheme
        blocks = scheme.blocks(k)
        codes = self.graph.external(name + ".codes", TensorProto.UINT8, (n, blocks, scheme.block * scheme.bits // 8), job.codes)
        scales = self.graph.external(name + ".scales", TensorProto.FLOAT, (n, blocks), job.scales)
        inputs = [x, codes, scales]
        if job.zero_points is not None:
            packed = -(-blocks * scheme.bits // 8)
            inputs.append(self.graph.external(name + ".zeros", TensorProto.UINT8, (n, packed), job.zero_points))
        if bias is not None:
            inputs += [""] * (5 - len(inputs)) + [bias]
        return self.graph.emit(
            "MatMulNBits",
            inputs,
            CONTRIB,
            K=k,
            N=n,
            bits=scheme.bits,
            block_size=scheme.block,
            accuracy_level=self._levels[weight.activations],
        )

    def _gather_quantized(self, ids: str, table: Weight, scheme: Scheme) -> str:
        rows, width = table.tensor.shape
        blocks = scheme.blocks(width)
        job = self.graph.quantized(table, scheme)
        data_shape = (rows, blocks * scheme.block * scheme.bits // 8)
        data = self.graph.external(table.name + ".rows", TensorProto.UINT8, data_shape, job.codes)
        scales = self.graph.external(table.name + ".row_scales", TensorProto.FLOAT, (rows, blocks), job.scales)
        inputs = [data, ids, scales]
        if job.zero_points is not None:
            packed = -(-blocks * scheme.bits // 8)
            inputs.append(self.graph.external(table.name + ".row_zeros", TensorProto.UINT8, (rows, packed), job.zero_points))
        sizes = {"bits": scheme.bits, "block_size": scheme.block, "gather_axis": 0, "quantize_axis": 1}
        x = self.graph.emit("GatherBlockQuantized", inputs, CONTRIB, **sizes)
        if blocks * scheme.block == width:
            return x
        return self.graph.emit("Slice", [x, *map(self.graph.vector, (0, width, 2))])

    # -- heads ----------------------------------------------------------------------------------------------------

    def _packed(self, q: Value, k: Value, v: Value) -> str | None:
        """The fused product whose parts are exactly q, k and v, in order."""
        fused = q.fused if q.name is None else None
        whole = fused is not None and len(fused.parts) == 3 and all(map(operator.is_, fused.parts, (q, k, v)))
        return fused.name if fused is not None and whole else None

    def _rotate(self, x: Value, heads: int, spec: AttentionSpec, rotary: Rotary, positions: Positions) -> Value:
        """Rotate outside of the attention, for sizes that its own rotary refuses.

        Plain operators: the rotary operator refuses some of those sizes too.
        """
        half = rotary.dims // 2
        grouped = self.graph.emit("Reshape", [self.name(x), self.graph.vector(0, 0, heads, spec.head_dim)])
        sizes = [half, half] + [spec.head_dim - rotary.dims] * (spec.head_dim > rotary.dims)
        parts = [self.graph.new("rotary") for _ in sizes]
        self.graph.node("Split", [grouped, self.graph.vector(*sizes)], parts, axis=-1)
        cos, sin = (self.graph.emit("Gather", [table, positions.ids], axis=0) for table in self._rotary_tables(rotary))
        axis = self.graph.vector(2)
        cos, sin = (self.graph.emit("Unsqueeze", [table, axis]) for table in (cos, sin))
        a, b = parts[:2]
        first = self.graph.emit("Sub", [self.graph.emit("Mul", [a, cos]), self.graph.emit("Mul", [b, sin])])
        second = self.graph.emit("Add", [self.graph.emit("Mul", [b, cos]), self.graph.emit("Mul", [a, sin])])
        joined = self.graph.emit("Concat", [first, second, *parts[2:]], axis=-1)
        return Value(self.graph.emit("Reshape", [joined, self.graph.vector(0, 0, -1)]))

    def _pad_heads(self, x: Value, heads: int, head_dim: int, padded: int) -> str:
        if padded == head_dim:
            return self.name(x)
        grouped = self.graph.emit("Reshape", [self.name(x), self.graph.vector(0, 0, heads, head_dim)])
        pads = self.graph.vector(0, padded - head_dim)
        wide = self.graph.emit("Pad", [grouped, pads, "", self.graph.vector(3)])
        return self.graph.emit("Reshape", [wide, self.graph.vector(0, 0, -1)])

    def _unpad_heads(self, x: str, heads: int, head_dim: int, padded: int) -> str:
        if padded == head_dim:
            return x
        grouped = self.graph.emit("Reshape", [x, self.graph.vector(0, 0, heads, padded)])
        narrow = self.graph.emit("Slice", [grouped, *map(self.graph.vector, (0, head_dim, 3))])
        return self.graph.emit("Reshape", [narrow, self.graph.vector(0, 0, -1)])

    def _rotary_tables(self, rotary: Rotary) -> tuple[str, str]:
        if rotary not in self._rotary:
            index = len(self._rotary)
            cos = RotaryTable(rotary, self._max_context, np.cos)
            sin = RotaryTable(rotary, self._max_context, np.sin)
            names = self.graph.float_tensor(f"rotary.{index}.cos", cos), self.graph.float_tensor(f"rotary.{index}.sin", sin)
            self._rotary[rotary] = names
        return self._rotary[rotary]


def _padded(scales: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Scales [kv_heads, d] as attention takes them, [1, kv_heads, 1, width]; the channels of padding are always zero."""
    return np.pad(scales, ((0, 0), (0, width - scales.shape[1])), constant_values=1)[None, :, None]


class RotaryTable(LazyTensor):
    """cos or sin of position times frequency, float32 [positions, frequencies]."""

    def __init__(self, rotary: Rotary, positions: int, function: np.ufunc) -> None:
        self.shape = (positions, len(rotary.frequencies))
        self._rotary, self._function = rotary, function

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        angles = np.arange(start, stop, dtype=np.float32)[:, None] * np.array(self._rotary.frequencies, np.float32)
        return np.asarray(self._function(angles) * np.float32(self._rotary.factor), np.float32)
