"""How quantized weights lie in the data file of an ONNX graph: the layout of MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.data import DataFile, DataLayout, Place, Rows
from edgellm.converters.quantizers import Quantize
from edgellm.converters.weights import Array, LazyTensor, Weight
from edgellm.scheme import Scheme


@dataclass(frozen=True)
class QuantizedJob:
    """A tensor to quantize, and the places of its codes, scales and zero points.

    Codes are unsigned (signed code + 2**(bits-1)), [out, blocks, block * bits / 8], 4-bit codes low nibble first: the
    layout of MatMulNBits' B and, read as rows, of GatherBlockQuantized's data. Zero points are packed the same way.
    """

    name: str
    tensor: LazyTensor
    scheme: Scheme
    importance: Array | None
    codes: Place
    scales: Place
    zero_points: Place | None

    @classmethod
    def add(cls, layout: DataLayout, weight: Weight, scheme: Scheme) -> QuantizedJob:
        """Reserve room for a matrix [out, in]."""
        rows, blocks = weight.tensor.shape[0], scheme.blocks(weight.tensor.shape[1])
        codes = layout.reserve(rows * blocks * scheme.block * scheme.bits // 8)
        scales = layout.reserve(4 * rows * blocks)
        zeros = None if scheme.symmetric else layout.reserve(rows * -(-blocks * scheme.bits // 8))
        job = cls(weight.name, weight.tensor, scheme, weight.importance, codes, scales, zeros)
        layout.jobs.append(job)
        return job

    def write(self, data: DataFile, start: int, rows: Rows, quantize: Quantize) -> None:
        """Quantize and pack rows from `start` on."""
        part, height = rows.quantized(self.scheme, self.importance, quantize), self.tensor.shape[0]
        data.put(self.codes, start, height, pack_codes(part.codes, self.scheme.bits))
        data.put(self.scales, start, height, part.scales)
        if self.zero_points is not None and part.zero_points is not None:
            zeros = part.zero_points
            if self.scheme.bits == 4 and zeros.shape[1] % 2:
                zeros = np.pad(zeros, ((0, 0), (0, 1)), constant_values=-8)  # fills the last byte's high nibble with 0
            data.put(self.zero_points, start, height, pack_codes(zeros, self.scheme.bits))


def pack_codes(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Signed codes [..., n] as unsigned bytes: [..., n] for 8 bit, [..., n/2] for 4 bit, low nibble first."""
    unsigned = codes.view(np.uint8) + np.uint8(1 << (bits - 1))
    if bits == 8:
        return unsigned
    return unsigned[..., 0::2] | (unsigned[..., 1::2] << np.uint8(4))
