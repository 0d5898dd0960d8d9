"""Weights as they lie in a bundle's .tflite, by name: another graph can be made of the very same bytes."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.data import Place
from edgellm.converters.tflite.graph import schema


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A tensor whose bytes lie behind the tables.

    Attributes:
        shape, type: as the file says; `type` is one of the schema's.
        place: where the bytes lie in the file.
        scales: float32 [out] where each row has one, else None.
        block: input channels per scale where they are blocks, else 0.
        block_scales: float16 [out, blocks] of those.
    """

    shape: tuple[int, ...]
    type: int
    place: Place
    scales: NDArray[np.float32] | None = None
    block: int = 0
    block_scales: StoredWeight | None = None


def read_weights(path: Path) -> Mapping[str, StoredWeight]:
    """The weights of a file that was found sound (`edgellm.runtimes.tflite_file`): only its tables are read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _weights(data)  # whose locals hold on to the mapping


def _weights(data: mmap.mmap) -> Mapping[str, StoredWeight]:
    weights: dict[str, StoredWeight] = {}
    model = schema.Model.GetRootAs(data, 0)
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            if model.Buffers(tensor.Buffer()).Size() and tensor.Name().decode() not in weights:
                weights[tensor.Name().decode()] = _weight(model, graph, tensor)
    return weights


def _weight(model: Any, graph: Any, tensor: Any) -> StoredWeight:
    buffer = model.Buffers(tensor.Buffer())
    shape = tuple(tensor.Shape(axis) for axis in range(tensor.ShapeLength()))
    place = Place(buffer.Offset(), buffer.Size())
    grid = tensor.Quantization()
    if grid is None:
        return StoredWeight(shape, tensor.Type(), place)
    if grid.DetailsType() != schema.QuantizationDetails.BlockwiseQuantization:
        scales = np.array(grid.ScaleAsNumpy(), np.float32)
        return StoredWeight(shape, tensor.Type(), place, scales)
    details = schema.BlockwiseQuantization()
    details.Init(grid.Details().Bytes, grid.Details().Pos)
    table = _weight(model, graph, graph.Tensors(details.Scales()))
    return StoredWeight(shape, tensor.Type(), place, None, details.BlockSize(), table)
