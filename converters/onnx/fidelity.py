"""What onnxruntime does to activations, and the same graph as it would be without that.

With accuracy_level 4 a MatMulNBits rounds its inputs to int8, symmetric, with a scale for as many channels as a block of
its weights has. With 0 it computes in float32, on the very same codes, scales and zero points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from edgellm.bundle import Graph
from edgellm.converters.calibration import Calibration
from edgellm.converters.replay import AsWritten, Numerics, Tensors
from edgellm.converters.weights import Array
from edgellm.scheme import CacheGrid, Recipe, Scheme
from edgellm.spec import ModelSpec

RUNS = True  # what was written is told by running it
FLOAT_FILE = "model.float.onnx"
QUANTIZED_CACHE = ("k_quant_type", "v_quant_type", "kv_cache_bit_width")
CACHE_SCALES = 12  # the first of a GroupQueryAttention's inputs for scales of its cache


def numerics(recipe: Recipe, calibration: Calibration) -> Numerics:
    """What the kernels do to activations."""
    grids = tuple(each.grid(centered=False) for each in calibration.cache) if recipe.kv == 8 else ()
    return Numerics(round_inputs, grids)


def round_inputs(x: Array, scheme: Scheme) -> Array:
    """Inputs [..., in] as int8 codes stand for them."""
    width = x.shape[-1]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -width % scheme.block)])
    blocks = padded.reshape(*x.shape[:-1], -1, scheme.block)
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    blocks *= inverse
    np.rint(blocks, out=blocks)
    blocks *= scales
    return blocks.reshape(padded.shape)[..., :width]


def cache_constants(spec: ModelSpec, grids: Sequence[CacheGrid]) -> Iterator[Array]:
    """Scales of keys and values of every layer; heads are filled up to a multiple of 8, with 1 for a scale."""
    for grid in grids:
        for scales in (grid.keys, grid.values):
            yield np.pad(scales, ((0, 0), (0, -scales.shape[1] % 8)), constant_values=1)


def as_written(folder: Path, graph: Graph, tensors: Tensors) -> AsWritten:
    """The graph that lies in a folder, beside its data, with activations and cache in float32: another file there."""
    model = onnx.load(folder / graph.file, load_external_data=False)
    cache = {template for kv in graph.kv for template in (kv.past_key, kv.past_value, kv.present_key, kv.present_value)}
    caches = {name.replace("{layer}", str(layer)) for name in cache for kv in graph.kv for layer in kv.layers}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            next(each for each in node.attribute if each.name == "accuracy_level").i = 0
        if node.op_type == "GroupQueryAttention" and len(node.input) > CACHE_SCALES:
            kept = [each for each in node.attribute if each.name not in QUANTIZED_CACHE]
            del node.attribute[:], node.input[CACHE_SCALES:]
            node.attribute.extend(kept)
    for value in (*model.graph.input, *model.graph.output):
        if value.name in caches:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    (folder / FLOAT_FILE).write_bytes(model.SerializeToString())
    layouts = tuple(replace(kv, dtype="float32") for kv in graph.kv)
    made = replace(
        graph, file=FLOAT_FILE, kv=layouts, files=(FLOAT_FILE, *(name for name in graph.files if name != graph.file))
    )
    return AsWritten("the graph with accuracy_level 0", graph=made)
