"""What XNNPACK does to activations, and the weights as they lie in the file.

Where a weight has codes, each row of inputs is rounded to 8 bits, asymmetric, between the least and the largest value of the
row and zero. 16 bits have scales that were fixed beforehand, for what goes in and for what comes out. There is no switch to
turn that off, so what the file holds is read, and runs on the numpy back end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.bundle import Graph
from edgellm.converters.calibration import Calibration
from edgellm.converters.replay import AsWritten, Numerics, Tensors
from edgellm.converters.tflite.graph import schema
from edgellm.converters.tflite.stored import StoredWeight, read_weights
from edgellm.converters.weights import Array, LazyTensor
from edgellm.scheme import CacheGrid, Recipe, Scheme
from edgellm.spec import ModelSpec

CODES, SCALES = ".codes", ".scales"  # what the names of such parts of a weight end in
RUNS = False  # what was written is told by reading it


def numerics(recipe: Recipe, calibration: Calibration) -> Numerics:
    """What the kernels do to activations."""
    grids = tuple(each.grid(centered=True) for each in calibration.cache) if recipe.kv == 8 else ()
    return Numerics(round_inputs, grids, calibration.fixed)


def round_inputs(x: Array, scheme: Scheme) -> Array:
    """Inputs [..., in] as int8 codes stand for them."""
    low, high = np.minimum(x.min(axis=-1, keepdims=True), 0), np.maximum(x.max(axis=-1, keepdims=True), 0)
    steps = np.divide(np.float32(255), high - low, out=np.ones_like(low), where=high > low)
    low, high = low * steps, high * steps
    zero = np.where(low + high > 1, -128 - low, 127 - high)  # from the end that is nearer to zero
    zero = np.rint(np.clip(zero, -128, 127))
    codes = np.clip(np.rint(x * steps) + zero, -128, 127)
    rounded: Array = ((codes - zero) / steps).astype(np.float32, copy=False)
    return rounded


def cache_constants(spec: ModelSpec, grids: Sequence[CacheGrid]) -> Iterator[Array]:
    """What makes codes of keys and values, and what makes up for it: in the queries, and in what attention gives."""
    for layer, grid in enumerate(grids):
        attention = spec.attention(layer)
        yield np.repeat(grid.keys, attention.heads // attention.kv_heads, axis=0) * np.float32(attention.scale)
        yield np.float32(1) / grid.keys
        yield -grid.centers / grid.keys
        yield np.float32(1) / grid.values
        yield grid.values


def as_written(folder: Path, graph: Graph, tensors: Tensors) -> AsWritten:
    """The weights in the file of a graph, by canonical name; `tensors` of the source have their shapes."""
    path = folder / graph.file
    weights = read_weights(path)
    stored_in = {name: stored for stored in weights if not stored.endswith(SCALES) for name in _names(stored)}

    def tensor(name: str) -> LazyTensor:
        stored = stored_in[name]
        first = 0
        for each in _names(stored):
            if each == name:
                break
            first += tensors(each.removesuffix("bias") + "weight" if each.endswith("bias") else each).shape[0]
        row_scales = weights.get(stored.removesuffix(CODES) + SCALES)
        return StoredTensor(path, tensors(name).shape, weights[stored], first, row_scales)

    return AsWritten("the weights that lie in the file, by numpy", tensors=tensor)


def _names(stored: str) -> list[str]:
    """The tensors that lie in a weight of the file: what one product serves is one, "a.weight+b.weight", and so is its bias."""
    names = stored.removesuffix(CODES).split("+")
    if len(names) > 1 and stored.endswith(".weight.bias"):
        return [name.removesuffix(".bias").removesuffix("weight") + "bias" for name in names]
    return names


class StoredTensor(LazyTensor):
    """Rows of a weight in a .tflite file.

    Args:
        path: the file.
        shape: of the tensor, whose rows begin at `first` of the weight's.
        weight: what the file says of it.
        row_scales: where they lie, if they are a tensor of their own.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], weight: StoredWeight, first: int, row_scales: StoredWeight | None
    ) -> None:
        self.shape = shape
        self._path, self._weight, self._first = path, weight, first
        self._row_scales = None if weight.block else row_scales

    def rows(self, start: int, stop: int) -> Array:
        weight, start, stop = self._weight, self._first + start, self._first + stop
        if weight.type == schema.TensorType.FLOAT32:
            return self._read(weight, np.dtype("<f4"), start, stop).reshape(-1, *self.shape[1:])
        if weight.type == schema.TensorType.INT8:
            values = self._read(weight, np.dtype(np.int8), start, stop).astype(np.float32)
        else:
            pairs = self._read(weight, np.dtype(np.int8), start, stop)
            values = np.stack([(pairs << 4) >> 4, pairs >> 4], axis=-1).reshape(stop - start, -1).astype(np.float32)
        if self._row_scales is not None:
            values *= self._read(self._row_scales, np.dtype("<f4"), start, stop).reshape(-1, 1)
        elif weight.block_scales is not None:
            scales = self._read(weight.block_scales, np.dtype("<f2"), start, stop).astype(np.float32)
            values = (values.reshape(*scales.shape, weight.block) * scales[..., None]).reshape(values.shape)
        elif weight.scales is not None:
            values *= weight.scales[start:stop, None]
        return values

    def _read(self, weight: StoredWeight, kind: np.dtype[Any], start: int, stop: int) -> NDArray[Any]:
        """Rows of a tensor in the file, [rows, values]."""
        row = weight.place.length // weight.shape[0]
        found = np.fromfile(self._path, kind, (stop - start) * row // kind.itemsize, offset=weight.place.offset + start * row)
        return found.reshape(stop - start, -1)
