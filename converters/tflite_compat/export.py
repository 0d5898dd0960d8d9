"""Export a model as a TFLite file that tflite-runtime 2.14 runs: signatures over shared weights, as on the other TFLite target.

    decode          T = 1                   logits float32 [1, vocab]
    prefill_T       T = 16                  no logits: it fills the cache
    logits_T        T = 16                  logits float32 [T, vocab], for evaluation

Each takes `tokens` int32 [T], `input_pos` int32 [T], `mask` (and `mask_W` where layers have a window of W) float32
[1, 1, T, S + T], for the S slots of the cache and the new tokens, and per layer `kv_cache_k_N`, `kv_cache_v_N` float32
[1, kv_heads, S, head_dim]. It returns the keys and values of the new tokens, `kv_new_k_N`, `kv_new_v_N` float32
[1, kv_heads, T, head_dim], which the session puts into its cache. S is resized at run time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgellm.bundle import Graph, KVLayout
from edgellm.converters.calibration import NOTHING, Calibration
from edgellm.converters.data import DataLayout
from edgellm.converters.decoder import decode
from edgellm.converters.tflite.export import Store, TflitePlan, kv_layouts
from edgellm.converters.tflite.graph import Buffer, Grid, Subgraph, Tensor, schema
from edgellm.converters.tflite_compat.data import RowsJob
from edgellm.converters.tflite_compat.ops import NEW_KEY, NEW_VALUE, PAST_KEY, PAST_VALUE, CompatOps
from edgellm.converters.weights import LazyTensor, Weight, on_grids
from edgellm.errors import UsageError
from edgellm.scheme import Recipe, Scheme
from edgellm.spec import ModelSpec

GRAPH_FILE = "model_compat.tflite"
# Longer chunks are no faster a token, and each signature that runs packs 4-bit weights for itself: so there are few.
SIGNATURES = (("decode", 1, True), ("prefill_16", 16, False), ("logits_16", 16, True))
BLOCKS, BLOCK_SIZE, KV = (0,), 0, "fp32"
EXTRA_BITS = 0.1
NO_ACTIVATIONS = dict.fromkeys(
    (16, 32), ("tflite-runtime has 8-bit activations only beside quantized weights", "leave it out, or use another --target")
)
logger = logging.getLogger(__name__)
VERSIONS = {"FULLY_CONNECTED": 9}  # of the operators that we use in a later form than the first


def plan(
    spec: ModelSpec, tensors: Callable[[str], LazyTensor], recipe: Recipe, calibration: Calibration = NOTHING
) -> TflitePlan:
    """Build the subgraphs and lay out their data; no weight is read.

    Raises:
        UsageError: the recipe has a grid that the kernels do not take.
    """
    if recipe.kv == 8:
        raise UsageError("tflite-compat has a float32 cache only", where="--kv", fix="leave it out, or give fp32")
    if any(rule.scheme is not None and rule.scheme.bits == 4 for rule in recipe.rules):
        logger.warning("tflite-runtime's 4-bit kernel has one scale a row, which costs a small model much: see --quant int8")
    layout = DataLayout()
    store = CompatStore(layout)
    shared: dict[tuple[str, bytes], Buffer] = {}
    weights = on_grids(tensors, recipe, calibration.importance)
    subgraphs = []
    for name, tokens, has_logits in SIGNATURES:
        graph = Subgraph(name, shared, versions=VERSIONS)
        ops = CompatOps(graph, tokens, store)
        ids = graph.input("tokens", (tokens,), np.int32)
        logits = decode(spec, weights, ops, ids, ops.positions())
        if has_logits:
            graph.output("logits", logits)
        subgraphs.append(graph)
    layouts = tuple(map(_kv_layout, kv_layouts(spec, "float32")))
    return TflitePlan(tuple(subgraphs), layout, Graph(GRAPH_FILE, layouts, (GRAPH_FILE,)))


def grid(bits: int, block: int) -> Scheme:
    """A scale for each row; of 4-bit codes the kernel corrupts the lowest one, -8, and its neighbour with it."""
    return Scheme(bits, 0 if bits == 8 else block, scales="positive", narrow_range=True)


def _kv_layout(layout: KVLayout) -> KVLayout:
    """The cache is the session's, and the graph returns what is new."""
    past = replace(layout, past_key=PAST_KEY, past_value=PAST_VALUE, dtype="float32", capacity="session")
    return replace(past, present_key=NEW_KEY, present_value=NEW_VALUE)


class CompatStore(Store):
    """Weights by name; of 8-bit ones the codes and the scales of the rows are tensors of their own."""

    def __init__(self, layout: DataLayout) -> None:
        super().__init__(layout)
        self._rows: dict[str, tuple[Buffer, Buffer]] = {}
        self._views: dict[tuple[int, str, tuple[int, ...]], Tensor] = {}

    def table(self, graph: Subgraph, weight: Weight) -> Tensor:
        """An embedding [vocab, D] as GATHER takes it: float32, or int8 codes as plain numbers."""
        if weight.scheme is None:
            return self.tensor(graph, weight)
        if weight.scheme.bits != 8:
            raise UsageError(
                f"'{weight.name}', an embedding, cannot have {weight.scheme.bits} bits", where="recipe", fix="give it 8"
            )
        codes, _ = self._codes_and_scales(weight, weight.scheme)
        return self._view(graph, weight.name + ".codes", weight.tensor.shape, schema.TensorType.INT8, codes)

    def scales(self, graph: Subgraph, weight: Weight, shape: tuple[int, ...]) -> Tensor:
        """The scales of an 8-bit weight's rows, float32 of a shape with so many elements."""
        _, scales = self._rows[weight.name]
        return self._view(graph, weight.name + ".scales", shape, schema.TensorType.FLOAT32, scales)

    def _view(self, graph: Subgraph, name: str, shape: tuple[int, ...], kind: int, buffer: Buffer) -> Tensor:
        return self._views.setdefault((id(graph), name, shape), Tensor(name, shape, kind, buffer))

    def _new(self, weight: Weight) -> Tensor:
        if weight.scheme is None:
            return super()._new(weight)
        _check_grid(weight, weight.scheme)
        if weight.scheme.bits == 4:
            return super()._new(weight)
        codes, _ = self._codes_and_scales(weight, weight.scheme)
        return Tensor(weight.name, weight.tensor.shape, schema.TensorType.INT8, codes, Grid(np.ones(1, np.float32)))

    def _codes_and_scales(self, weight: Weight, scheme: Scheme) -> tuple[Buffer, Buffer]:
        if weight.name not in self._rows:
            _check_grid(weight, scheme)
            job = RowsJob.add(self._layout, weight, scheme)
            self._rows[weight.name] = Buffer(place=job.codes), Buffer(place=job.scales)
        return self._rows[weight.name]


def _check_grid(weight: Weight, scheme: Scheme) -> None:
    """What the kernels compute rightly: of the rest they make zeros or worse, without a word."""
    rows, width = weight.tensor.shape
    if scheme.block:
        raise UsageError(
            f"tflite-runtime has no kernels for blocks of {scheme.block}", where="--block-size", fix="leave it out, or give 0"
        )
    # the 4-bit kernel takes 4 rows of 32 channels at a time; of other widths it reads and writes past the end
    fits = scheme.bits == 8 or (scheme.bits == 4 and width % 32 == 0 and rows >= 4)
    if not fits or not scheme.symmetric or scheme.scales == "float32" or not scheme.narrow_range:
        raise UsageError(
            f"'{weight.name}' [{rows}, {width}] cannot have this grid of {scheme.bits} bits on tflite-runtime",
            where="recipe",
            fix="use --quant int8",
        )
