"""Round to nearest: each block's scale from its extremes, each value to the closest code.

Symmetric blocks take the scale from the value of largest magnitude, signed so that it lands on the lowest code: that
uses all 16 (or 256) codes, where a scale of max|w| / 7 would waste one (the same choice as llama.cpp's Q4_0). Kernels
that want positive scales get the smallest that reaches both extremes.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018),
section 2.1, for the affine grid r = S(q - Z) on which zero is exact; llama.cpp's Q4_0 for the signed scale.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.scheme import QTensor, Scheme


def quantize(weight: NDArray[np.float32], scheme: Scheme, importance: NDArray[np.float32] | None = None) -> QTensor:
    """Quantize rows of a weight.

    Args:
        weight: float32 [out, in]; rows are independent, so a caller may pass any slice of them.
        scheme: the grid.
        importance: of no interest here.
    """
    rows, width = weight.shape
    blocks, size = scheme.blocks(width), scheme.size(width)
    if blocks * size != width:
        weight = np.pad(weight, ((0, 0), (0, blocks * size - width)))
    grouped = weight.reshape(rows, blocks, size)
    codes, scales, zeros = (_symmetric if scheme.symmetric else _asymmetric)(grouped, scheme)
    return QTensor(scheme, (rows, width), codes, scales, zeros)


def _symmetric(grouped: NDArray[np.float32], scheme: Scheme) -> tuple[NDArray[np.int8], NDArray[np.float32], None]:
    high, low = grouped.max(axis=-1), grouped.min(axis=-1)
    if scheme.scales == "float32":
        extreme = np.where(high > -low, high, low)
        scales = extreme / np.float32(scheme.low)
    else:
        scales = np.maximum(high / np.float32(scheme.high), low / np.float32(scheme.low))
        scales[scales <= 0] = 1  # a block of zeros
    if scheme.scales == "positive bfloat16":
        scales = bfloat16(scales)
    return nearest(grouped, scales, None, scheme), scales, None


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Positive float32 rounded to the nearest bfloat16 that float16 holds as well, ties to even."""
    normal = np.clip(values, np.float32(2.0**-14), np.float32(65280))
    bits = np.ascontiguousarray(normal).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def _asymmetric(grouped: NDArray[np.float32], scheme: Scheme) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int8]]:
    high = np.maximum(grouped.max(axis=-1), 0)  # 0 must be representable: padding and sparsity depend on it
    low = np.minimum(grouped.min(axis=-1), 0)
    scales = (high - low) / np.float32(scheme.high - scheme.low)
    zeros = np.zeros_like(scales)
    np.divide(low, scales, out=zeros, where=scales > 0)
    zero_points = np.clip(np.rint(scheme.low - zeros), scheme.low, scheme.high).astype(np.int8)
    return nearest(grouped, scales, zero_points, scheme), scales, zero_points


def nearest(
    grouped: NDArray[np.float32], scales: NDArray[np.float32], zero_points: NDArray[np.int8] | None, scheme: Scheme
) -> NDArray[np.int8]:
    """The codes nearest to values [out, blocks, size] at given scales and zero points [out, blocks]."""
    inverse = np.zeros_like(scales)
    np.divide(np.float32(1), scales, out=inverse, where=scales != 0)
    scaled = grouped * inverse[..., None]
    np.rint(scaled, out=scaled)
    if zero_points is not None:
        scaled += zero_points[..., None]
    np.clip(scaled, scheme.low, scheme.high, out=scaled)
    return scaled.astype(np.int8)
