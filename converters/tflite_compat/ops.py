"""The operators of tflite-runtime 2.14 where they differ from LiteRT's.

    linear      int8: FULLY_CONNECTED with one scale of 1, then MUL by the scales of the rows; int4: FULLY_CONNECTED
    embed       GATHER of int8 rows, as if they were plain numbers, CAST, MUL by the gathered scale
    attention   over the cache, which is an input only, and the new tokens, whose keys and values are outputs

There, FULLY_CONNECTED takes the scales of int8 rows for zeros and EMBEDDING_LOOKUP does so with a quantized table, silently.
The session appends what attention returns: the graph never copies a cache, and no padding can reach it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from edgellm.converters.tflite.graph import Node, Subgraph, Tensor, schema
from edgellm.converters.tflite.ops import CAPACITY, Positions, TfliteOps
from edgellm.converters.weights import Weight
from edgellm.spec import AttentionSpec

PAST_KEY, PAST_VALUE = "kv_cache_k_{layer}", "kv_cache_v_{layer}"
NEW_KEY, NEW_VALUE = "kv_new_k_{layer}", "kv_new_v_{layer}"


class Weights(Protocol):
    """Tensors of weights in a subgraph, over data shared with the others."""

    def tensor(self, graph: Subgraph, weight: Weight) -> Tensor:
        """A weight as FULLY_CONNECTED or an elementwise operator takes it."""
        ...

    def table(self, graph: Subgraph, weight: Weight) -> Tensor:
        """An embedding [vocab, D] as GATHER takes it: float32, or int8 codes as plain numbers."""
        ...

    def scales(self, graph: Subgraph, weight: Weight, shape: tuple[int, ...]) -> Tensor:
        """The scales of an 8-bit weight's rows, float32 of a shape with so many elements."""
        ...


class CompatOps(TfliteOps):
    """Lowers operations into a subgraph; one instance a subgraph.

    Args:
        graph: where nodes go.
        tokens: T.
        weights: the tensors of weights.
    """

    def __init__(self, graph: Subgraph, tokens: int, weights: Weights) -> None:
        super().__init__(graph, tokens, weights.tensor)
        self._weights = weights

    def embed(self, ids: Tensor, table: Weight, scale: float) -> Tensor:
        rows, width = table.tensor.shape
        x = self._gather(self._weights.table(self.graph, table), ids)
        if table.scheme is not None:
            x = self.graph.emit("CAST", [x], (self._tokens, width), kind=schema.TensorType.FLOAT32)
            x = self._mul(x, self._gather(self._weights.scales(self.graph, table, (rows, 1)), ids))
        return x if scale == 1 else self._mul(x, np.float32(scale))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, layer: int, positions: Positions) -> Tensor:
        query, key, value = self._heads(q, k, v, spec, None, positions)
        keys = self._past_and_new(key, PAST_KEY.format(layer=layer), NEW_KEY.format(layer=layer))
        values = self._past_and_new(value, PAST_VALUE.format(layer=layer), NEW_VALUE.format(layer=layer))
        shape = (*query.shape[:3], CAPACITY + self._tokens)
        scores = self._concat([self._batch_matmul(query, each, transpose=True) for each in keys], shape, axis=3)
        parts = self._split_slots(self._shares(scores, spec, positions))
        mixed, new = (self._batch_matmul(part, each, transpose=False) for part, each in zip(parts, values, strict=True))
        return self._joined_heads(self._add(mixed, new), spec)

    # -- parts ----------------------------------------------------------------------------------------------------

    def _matmul(self, x: Tensor, weight: Weight, bias: Weight | None) -> Tensor:
        if weight.scheme is None or weight.scheme.bits == 4:
            return super()._matmul(x, weight, bias)
        product = super()._matmul(x, weight, None)
        y = self._mul(product, self._weights.scales(self.graph, weight, (weight.tensor.shape[0],)))
        return y if bias is None else self._add(y, self._weights.tensor(self.graph, bias))

    def _mask(self, window: int | None, positions: Positions) -> Tensor:
        size = window or 0
        if size not in positions.masks:
            name, slots = f"mask_{size}" if size else "mask", CAPACITY + self._tokens
            positions.masks[size] = self.graph.input(name, (1, 1, self._tokens, slots), np.float32)
        return positions.masks[size]

    def _past_and_new(self, new: Tensor, past: str, name: str) -> tuple[Tensor, Tensor]:
        """The cache [1, KV, S, d] of earlier tokens, and new keys or values [T, KV, d] as [1, KV, T, d], an output."""
        tokens, heads, size = new.shape
        rows = self._reshape(self._transpose(new, 1, 0, 2), (1, heads, tokens, size))
        self.graph.output(name, rows)
        return self.graph.input(past, (1, heads, CAPACITY, size), np.float32), rows

    def _split_slots(self, shares: Tensor) -> list[Tensor]:
        """The shares of the cache and of the new tokens; the former's number is known at run time."""
        parts = [Tensor("part", (*shares.shape[:-1], size), shares.type) for size in (CAPACITY, self._tokens)]
        inputs = [shares, self.graph.vector(-1, self._tokens), self.graph.constant(np.int32(len(shares.shape) - 1))]
        options = schema.SplitVOptionsT()
        options.numSplits = len(parts)
        self.graph.nodes.append(Node("SPLIT_V", tuple(inputs), tuple(parts), options))
        return parts

    def _gather(self, table: Tensor, ids: Tensor) -> Tensor:
        options = schema.GatherOptionsT()
        options.axis = 0
        return self.graph.emit("GATHER", [table, ids], (self._tokens, *table.shape[1:]), options)
