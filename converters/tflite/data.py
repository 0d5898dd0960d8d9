"""How quantized weights lie in a .tflite file.

    int8 per channel      int8 [out, in], one float32 scale a row in the tensor's own table
    int4 per channel      two codes a byte, low nibble first, two's complement; scales as above
    int4 in blocks        codes as above, scales float16 [out, blocks] in a tensor of their own

The scales of channels are known when the weight has been quantized, so they are collected on the way: a few bytes a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.data import DataFile, DataLayout, Place, Rows
from edgellm.converters.quantizers import Quantize
from edgellm.converters.weights import Array, LazyTensor, Weight
from edgellm.scheme import Scheme


@dataclass(frozen=True, eq=False)
class QuantizedJob:
    """A weight to quantize, and where its codes and scales go.

    Attributes:
        scales: of channels, float32 [out], filled while writing; empty where blocks have theirs in the file.
        block_scales: place of float16 [out, blocks].
    """

    name: str
    tensor: LazyTensor
    scheme: Scheme
    importance: Array | None
    codes: Place
    scales: NDArray[np.float32]
    block_scales: Place | None

    @classmethod
    def add(cls, layout: DataLayout, weight: Weight, scheme: Scheme) -> QuantizedJob:
        """Reserve room for a matrix [out, in]."""
        rows, width = weight.tensor.shape
        codes = layout.reserve(rows * width * scheme.bits // 8)
        per_channel = scheme.block == 0
        blocks = None if per_channel else layout.reserve(2 * rows * scheme.blocks(width))
        job = cls(
            weight.name,
            weight.tensor,
            scheme,
            weight.importance,
            codes,
            np.ones(rows if per_channel else 0, np.float32),
            blocks,
        )
        layout.jobs.append(job)
        return job

    def write(self, data: DataFile, start: int, rows: Rows, quantize: Quantize) -> None:
        """Quantize rows from `start` on and put them to their places."""
        part = rows.quantized(self.scheme, self.importance, quantize)
        height, width = self.tensor.shape
        codes = part.codes.reshape(len(rows), -1)[:, :width]
        data.put(self.codes, start, height, codes if self.scheme.bits == 8 else pack_int4(codes))
        if self.block_scales is None:
            self.scales[start : start + len(rows)] = part.scales[:, 0]
        else:
            data.put(self.block_scales, start, height, part.scales.astype(np.float16))


def pack_int4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """int8 codes [out, in], in even, as bytes [out, in / 2]."""
    nibbles = codes.view(np.uint8) & np.uint8(15)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << np.uint8(4))
