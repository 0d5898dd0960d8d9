"""Export a model as an ONNX graph with external data: `model.onnx` and `model.onnx.data`.

    inputs   input_ids int64 [B, T], attention_mask int64 [B, past + T] of ones,
             past_key_values.N.{key,value} float32 or int8 [B, kv_heads, capacity, head_dim],
             logits_start int64 [1], optional: first new position whose logits are wanted; -1 (the default) is the last
    outputs  logits float32 [B, selected, vocab],
             present.N.{key,value}, which share the buffers of the past

`logits` is declared [B, 1, vocab], its shape without `logits_start`, because onnxruntime-genai reads it so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from edgellm.bundle import Graph, KVLayout, TextPolicy
from edgellm.converters.calibration import NOTHING, Calibration
from edgellm.converters.data import DataLayout
from edgellm.converters.decoder import decode
from edgellm.converters.onnx import genai_config
from edgellm.converters.onnx.graph import CONTRIB, GraphBuilder
from edgellm.converters.onnx.ops import OnnxOps, Value
from edgellm.converters.weights import LazyTensor, on_grids
from edgellm.errors import UsageError
from edgellm.scheme import Recipe, Scheme
from edgellm.spec import ModelSpec

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
BLOCK_SIZE, KV = 32, "fp32"  # onnxruntime-genai takes no 8-bit cache
EXTRA_BITS = 0.1  # v in 8 bits, nearly everywhere: apart from q and k it costs a step 5 %, more bits cost more
OPSET, IR_VERSION = 21, 10
LEVELS = {8: 4, 32: 0}  # accuracy_level by the bits of activations
NO_ACTIVATIONS = {
    16: ("onnxruntime's products with quantized weights take no 16-bit activations", "use none, or --target tflite")
}
BITS, BLOCKS = (4, 8), (16, 32, 64, 128)
PAST_KEY, PAST_VALUE = "past_key_values.{layer}.key", "past_key_values.{layer}.value"
PRESENT_KEY, PRESENT_VALUE = "present.{layer}.key", "present.{layer}.value"


@dataclass(frozen=True)
class OnnxPlan:
    """A graph that is complete but for its data, and where the data goes; see `edgellm.converters.targets.Plan`."""

    spec: ModelSpec
    model: ModelProto
    layout: DataLayout
    graph: Graph

    data_file, base = DATA_FILE, 0

    def write_graph(self, folder: Path) -> None:
        """Write the graph beside its data."""
        (folder / GRAPH_FILE).write_bytes(self.model.SerializeToString())

    def write_companions(self, folder: Path, text: TextPolicy, generation: Mapping[str, float]) -> None:
        """Write the configuration by which onnxruntime-genai runs the same folder, unless the cache is one it cannot take."""
        if all(layout.dtype == "float32" for layout in self.graph.kv):
            genai_config.write(folder, self.graph, self.spec, text, generation)


def plan(spec: ModelSpec, tensors: Callable[[str], LazyTensor], recipe: Recipe, calibration: Calibration = NOTHING) -> OnnxPlan:
    """Build the graph and lay out its data; no weight is read.

    Raises:
        UsageError: the recipe has a grid that the kernels do not take.
    """
    _check_grids(recipe)
    ranges = calibration.cache if recipe.kv == 8 else ()
    layout = DataLayout()
    builder = GraphBuilder(layout, DATA_FILE)
    ops = OnnxOps(builder, spec.max_context, LEVELS, [each.grid(centered=False) for each in ranges])
    positions = ops.positions("input_ids", "attention_mask", "logits_start")
    logits = decode(spec, on_grids(tensors, recipe, calibration.importance), ops, Value("input_ids"), positions)
    builder.node("Identity", [ops.name(logits)], ["logits"])
    dtype = "int8" if ranges else "float32"
    graph = Graph(GRAPH_FILE, _kv_layouts(spec, dtype), (GRAPH_FILE, DATA_FILE))
    return OnnxPlan(spec, _model(spec, builder, dtype), layout, graph)


def grid(bits: int, block: int) -> Scheme:
    """MatMulNBits' grids: 4 bit with zero points, 8 bit symmetric."""
    return Scheme(bits, block, symmetric=bits == 8)


def _check_grids(recipe: Recipe) -> None:
    """MatMulNBits' kernels take these grids and no others."""
    for scheme in (rule.scheme for rule in recipe.rules):
        if scheme is not None and scheme.block not in BLOCKS:
            sizes = ", ".join(map(str, BLOCKS))
            raise UsageError(f"block size {scheme.block} is not supported", where="--block-size", fix=f"choose one of {sizes}")
        if scheme is not None and scheme.bits not in BITS:
            raise UsageError(f"onnxruntime has no kernels for {scheme.bits} bits", where="recipe", fix="choose 4 or 8 bits")


def _model(spec: ModelSpec, builder: GraphBuilder, kv_dtype: str) -> ModelProto:
    builder.initializers.append(helper.make_tensor("logits_start", TensorProto.INT64, [1], [-1]))
    inputs = [
        _info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
        _info("attention_mask", TensorProto.INT64, ["batch", "total"]),
        _info("logits_start", TensorProto.INT64, [1]),
    ]
    outputs = [_info("logits", TensorProto.FLOAT, ["batch", 1, spec.vocab_size])]
    element = TensorProto.INT8 if kv_dtype == "int8" else TensorProto.FLOAT
    for layer in range(len(spec.layers)):
        attention = spec.attention(layer)
        shape: list[str | int] = ["batch", attention.kv_heads, "capacity", _padded(attention.head_dim)]
        for past, present in ((PAST_KEY, PRESENT_KEY), (PAST_VALUE, PRESENT_VALUE)):
            inputs.append(_info(past.format(layer=layer), element, shape))
            outputs.append(_info(present.format(layer=layer), element, shape))
    graph = helper.make_graph(builder.nodes, spec.architecture, inputs, outputs, builder.initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgellm")


def _info(name: str, kind: int, shape: list[str | int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _padded(head_dim: int) -> int:
    return math.ceil(head_dim / 8) * 8


def _kv_layouts(spec: ModelSpec, dtype: str) -> tuple[KVLayout, ...]:
    """One layout a kind of attention that the model has."""
    layouts = []
    for kind in dict.fromkeys(spec.layers):
        attention = spec.kinds[kind]
        layouts.append(
            KVLayout(
                layers=tuple(np.flatnonzero(np.array(spec.layers) == kind).tolist()),
                past_key=PAST_KEY,
                past_value=PAST_VALUE,
                present_key=PRESENT_KEY,
                present_value=PRESENT_VALUE,
                axes=("batch", "kv_heads", "capacity", "head_dim"),
                kv_heads=attention.kv_heads,
                head_dim=_padded(attention.head_dim),
                dtype=dtype,
                capacity="session",
            )
        )
    return tuple(layouts)
