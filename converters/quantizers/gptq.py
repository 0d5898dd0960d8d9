"""Rounding channel by channel, where each error is made up for by the channels that are still to come.

A block's scales are searched when its turn comes, on the values as earlier errors have left them; the search weighs a channel
by what an error in it costs after the later ones have made up for it, which is 1 / U² on the diagonal of the factor.
8-bit blocks are rounded to nearest: there is nothing to gain. So are rows of which nothing but the importance of channels is
known searched as `imatrix` does: with a diagonal Hessian no channel can make up for another.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022),
algorithm 1, in natural order, with the scale search of `imatrix` in place of the extremes of a block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.quantizers import imatrix
from edgellm.converters.statistics import Statistics
from edgellm.scheme import QTensor, Scheme

CALIBRATED = True
LAZY = 128  # channels whose errors are carried beyond them by one product of matrices
Values = NDArray[np.float32]

quantize = imatrix.quantize


def settle(weight: Values, scheme: Scheme, statistics: Statistics) -> QTensor:
    """Quantize rows of a weight; see `edgellm.converters.quantizers.Settle`."""
    if scheme.bits == 8:
        return imatrix.quantize(weight, scheme, statistics.importance)
    rows, width = weight.shape
    size, blocks = scheme.size(width), scheme.blocks(width)
    factor = statistics.factor
    costs = np.square(1 / np.diagonal(factor))
    left = np.array(weight.T, order="C")  # [in, out]: a channel is a row here, so that it lies together
    codes = np.zeros((rows, blocks * size), np.int8)
    scales = np.empty((rows, blocks), np.float32)
    zeros = None if scheme.symmetric else np.empty((rows, blocks), np.int8)
    for block in range(blocks):
        start, stop = block * size, min((block + 1) * size, width)
        grid = imatrix.quantize(np.ascontiguousarray(left[start:stop].T), scheme, costs[start:stop])
        scales[:, block] = grid.scales[:, 0]
        if zeros is not None and grid.zero_points is not None:
            zeros[:, block] = grid.zero_points[:, 0]
            codes[:, stop : start + size] = grid.zero_points  # padding stands for zero
        for first in range(start, stop, LAZY):
            last = min(first + LAZY, stop)
            codes[:, first:last] = _rounded(left, factor, first, last, grid).T
    return QTensor(scheme, (rows, width), codes.reshape(rows, blocks, size), scales, zeros)


def _rounded(left: Values, factor: Values, first: int, last: int, grid: QTensor) -> NDArray[np.int8]:
    """Codes [last - first, out] of some channels of one block; takes their errors to all later channels of `left`."""
    scheme, scale = grid.scheme, grid.scales[:, 0]
    zero = np.float32(0) if grid.zero_points is None else grid.zero_points[:, 0].astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.empty((last - first, left.shape[1]), np.int8)
    errors = np.empty((last - first, left.shape[1]), np.float32)
    for channel in range(first, last):
        code = np.rint(left[channel] * inverse) + zero
        np.clip(code, scheme.low, scheme.high, out=code)
        codes[channel - first] = code
        error = (left[channel] - (code - zero) * scale) / factor[channel, channel]
        errors[channel - first] = error
        left[channel + 1 : last] -= factor[channel, channel + 1 : last, None] * error
    left[last:] -= factor[first:last, last:].T @ errors
    return codes
