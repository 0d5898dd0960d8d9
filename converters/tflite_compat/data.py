"""How 8-bit weights lie in the file: int8 [out, in], and float32 [out] with a scale for each row, both in the data region.

tflite-runtime's product of floats and int8 knows one scale for the whole weight, so rows are scaled by an operator of their
own, whose factors are a tensor like any other. Its 4-bit product has a scale for each row: those lie as for LiteRT.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgellm.converters.data import DataFile, DataLayout, Place, Rows
from edgellm.converters.quantizers import Quantize
from edgellm.converters.weights import Array, LazyTensor, Weight
from edgellm.scheme import Scheme


@dataclass(frozen=True)
class RowsJob:
    """A weight to quantize, and where its codes and the scales of its rows go."""

    name: str
    tensor: LazyTensor
    scheme: Scheme
    importance: Array | None
    codes: Place
    scales: Place

    @classmethod
    def add(cls, layout: DataLayout, weight: Weight, scheme: Scheme) -> RowsJob:
        """Reserve room for a matrix [out, in]."""
        rows, width = weight.tensor.shape
        codes, scales = layout.reserve(rows * width), layout.reserve(4 * rows)
        job = cls(weight.name, weight.tensor, scheme, weight.importance, codes, scales)
        layout.jobs.append(job)
        return job

    def write(self, data: DataFile, start: int, rows: Rows, quantize: Quantize) -> None:
        """Quantize rows from `start` on and put them to their places."""
        part = rows.quantized(self.scheme, self.importance, quantize)
        height, width = self.tensor.shape
        data.put(self.codes, start, height, part.codes.reshape(len(rows), width))
        data.put(self.scales, start, height, part.scales.astype(np.float32))
