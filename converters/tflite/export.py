"""Export a model as a TFLite file: one subgraph a signature, over shared weights.

    decode          T = 1                   logits float32 [1, vocab]
    prefill_T       T = 8, 128              no logits: it fills the cache
    logits_T        T = 16                  logits float32 [T, vocab], for evaluation

Each takes `tokens` int32 [T], `input_pos` int32 [T], `mask` (and `mask_W` where layers have a window of W) float32
[1, 1, T, S], and per layer `kv_cache_k_N`, `kv_cache_v_N` float32 [1, kv_heads, S, head_dim], which it returns with the new
tokens in them. S is resized at run time. An 8-bit cache has int8 codes, and its keys are [1, kv_heads, head_dim, S].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from edgellm.bundle import Graph, KVLayout, TextPolicy
from edgellm.converters.calibration import NOTHING, Calibration
from edgellm.converters.data import ALIGNMENT, DataLayout
from edgellm.converters.decoder import decode
from edgellm.converters.tflite.data import QuantizedJob
from edgellm.converters.tflite.graph import Buffer, Grid, Subgraph, Tensor, schema, serialize
from edgellm.converters.tflite.ops import TfliteOps
from edgellm.converters.weights import LazyTensor, Weight, on_grids
from edgellm.errors import UsageError
from edgellm.scheme import Recipe, Scheme
from edgellm.spec import ModelSpec

GRAPH_FILE = "model.tflite"
SIGNATURES = (("decode", 1, True), ("prefill_8", 8, False), ("prefill_128", 128, False), ("logits_16", 16, True))
BLOCKS = (0, 32, 64, 128)
BLOCK_SIZE, KV = 32, "int8"
EXTRA_BITS = 0.7  # v apart from q and k costs a step 9 %; the rest of these bits then costs 1 %
NO_ACTIVATIONS = {
    32: ("LiteRT makes float32 of weights whose products take it, 8 times their memory", "use int16, or --target onnx")
}
AXES = ("batch", "kv_heads", "capacity", "head_dim")
KEY_AXES_INT8 = ("batch", "kv_heads", "head_dim", "capacity")
KEY, VALUE = "kv_cache_k_{layer}", "kv_cache_v_{layer}"


@dataclass(frozen=True)
class TflitePlan:
    """A graph that is complete but for its data; see `edgellm.converters.targets.Plan`."""

    subgraphs: tuple[Subgraph, ...]
    layout: DataLayout
    graph: Graph

    @property
    def data_file(self) -> str:
        """The graph's own file: weights lie behind its tables."""
        return self.graph.file

    @cached_property
    def base(self) -> int:
        """The weights lie behind room for the flatbuffer, which is filled in last: it holds scales that are known only then."""
        return -(-len(serialize(self.subgraphs, 0)) // ALIGNMENT) * ALIGNMENT

    def write_graph(self, folder: Path) -> None:
        """Write the flatbuffer into the room before the weights."""
        tables = serialize(self.subgraphs, self.base)
        if len(tables) > self.base:
            raise RuntimeError("the flatbuffer has grown into its data")
        with (folder / self.graph.file).open("r+b") as file:
            file.write(tables)

    def write_companions(self, folder: Path, text: TextPolicy, generation: Mapping[str, float]) -> None:
        """Nothing: other runtimes get an export of their own."""


def plan(
    spec: ModelSpec, tensors: Callable[[str], LazyTensor], recipe: Recipe, calibration: Calibration = NOTHING
) -> TflitePlan:
    """Build the subgraphs and lay out their data; no weight is read.

    Args:
        calibration: what a text showed, for a cache in 8 bit and for methods that weigh errors.

    Raises:
        UsageError: the recipe has a grid that the kernels do not take.
    """
    ranges = calibration.cache if recipe.kv == 8 else ()
    layout = DataLayout()
    store = Store(layout)
    shared: dict[tuple[str, bytes], Buffer] = {}
    weights = on_grids(tensors, recipe, calibration.importance)
    subgraphs = []
    for name, tokens, has_logits in SIGNATURES:
        graph = Subgraph(name, shared)
        ops = TfliteOps(graph, tokens, store.tensor, [each.grid(centered=True) for each in ranges], fixed=calibration.fixed)
        ids = graph.input("tokens", (tokens,), np.int32)
        logits = decode(spec, weights, ops, ids, ops.positions())
        if has_logits:
            graph.output("logits", logits)
        subgraphs.append(graph)
    graph_of = Graph(GRAPH_FILE, kv_layouts(spec, "int8" if ranges else "float32"), (GRAPH_FILE,))
    return TflitePlan(tuple(subgraphs), layout, graph_of)


def grid(bits: int, block: int) -> Scheme:
    """XNNPACK's grids: 8 bit per channel, 4 bit per channel (block 0) or in blocks whose scales it rounds to bfloat16."""
    if bits == 8 or block == 0:
        return Scheme(bits, 0, scales="positive")
    return Scheme(bits, block, scales="positive bfloat16")


class Store:
    """Weights by name: their data once, a tensor in every subgraph that uses them."""

    def __init__(self, layout: DataLayout) -> None:
        self._layout = layout
        self._floats: dict[str, Buffer] = {}
        self._jobs: dict[str, tuple[QuantizedJob, Buffer, Buffer | None]] = {}
        self._tensors: dict[tuple[int, str], Tensor] = {}

    def tensor(self, graph: Subgraph, weight: Weight) -> Tensor:
        """A weight in a subgraph."""
        key = (id(graph), weight.name)
        if key not in self._tensors:
            self._tensors[key] = self._new(weight)
        return self._tensors[key]

    def _new(self, weight: Weight) -> Tensor:
        shape = weight.tensor.shape
        if weight.scheme is None:
            if weight.name not in self._floats:
                self._floats[weight.name] = Buffer(place=self._layout.add_float(weight.name, weight.tensor).place)
            return Tensor(weight.name, shape, schema.TensorType.FLOAT32, self._floats[weight.name])
        if weight.name not in self._jobs:
            _check_grid(weight, weight.scheme)
            if weight.activations == 16 and weight.scheme.block:
                raise UsageError(
                    f"'{weight.name}' is in blocks, and int16 activations need a scale a row",
                    where="--recipe",
                    fix="say block = 0",
                )
            job = QuantizedJob.add(self._layout, weight, weight.scheme)
            scales = None if job.block_scales is None else Buffer(place=job.block_scales)
            self._jobs[weight.name] = job, Buffer(place=job.codes), scales
        job, codes, scales = self._jobs[weight.name]
        kind = schema.TensorType.INT8 if weight.scheme.bits == 8 else schema.TensorType.INT4
        if scales is None:
            return Tensor(weight.name, shape, kind, codes, Grid(job.scales))
        blocks = weight.scheme.blocks(shape[1])
        table = Tensor(weight.name + ".scales", (shape[0], blocks), schema.TensorType.FLOAT16, scales)
        return Tensor(weight.name, shape, kind, codes, Grid(table, weight.scheme.block))


def _check_grid(weight: Weight, scheme: Scheme) -> None:
    width = weight.tensor.shape[1]
    rows = scheme.block == 0 and width * scheme.bits % 8 == 0  # a row of codes fills its bytes
    fits = rows or (scheme.bits == 4 and scheme.block in BLOCKS[1:] and width % scheme.block == 0)
    if not scheme.symmetric or scheme.bits not in (4, 8) or not fits or scheme.scales == "float32":
        raise UsageError(
            f"'{weight.name}', {width} wide, cannot have {scheme.bits} bits in blocks of {scheme.block}",
            where="recipe",
            fix="use --block-size 32, 64 or 128 if it divides the width, or 0 for a scale a row, or --quant int8",
        )


def kv_layouts(spec: ModelSpec, dtype: str) -> tuple[KVLayout, ...]:
    """One layout a kind of attention that the model has."""
    return tuple(
        KVLayout(
            layers=tuple(index for index, name in enumerate(spec.layers) if name == kind),
            past_key=KEY,
            past_value=VALUE,
            present_key=KEY,
            present_value=VALUE,
            axes=AXES,
            kv_heads=spec.kinds[kind].kv_heads,
            head_dim=spec.kinds[kind].head_dim,
            dtype=dtype,
            key_axes=KEY_AXES_INT8 if dtype == "int8" else (),
            capacity="model",
        )
        for kind in dict.fromkeys(spec.layers)
    )
