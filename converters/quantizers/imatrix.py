"""Scales searched for the least error of a layer's outputs, as far as the importance of its inputs tells.

Each block tries scales around the one that reaches its extremes, rounds to codes, and fits the scale to those codes by
weighted least squares; the best of them stays. An error in a channel counts by the mean square of what comes in there: the
diagonal of E[x xᵀ], which is what llama.cpp's importance matrix holds as well. Without importance all channels count alike.
8-bit blocks are rounded to nearest: there is nothing to gain.

Source: weighted least squares over a uniform grid; the objective is the diagonal one of Frantar et al., "GPTQ" (2022), eq. 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.quantizers import rtn
from edgellm.scheme import QTensor, Scheme

CALIBRATED = True
RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.74, 0.68, 1.06)  # of the scale that reaches the extremes
SHIFTS = (-1, 1)
Values = NDArray[np.float32]


def quantize(weight: Values, scheme: Scheme, importance: Values | None = None) -> QTensor:
    """Quantize rows of a weight; see `edgellm.converters.quantizers.Quantize`."""
    first = rtn.quantize(weight, scheme)
    if scheme.bits == 8:
        return first
    rows, blocks, size = first.codes.shape
    padded = np.pad(weight, ((0, 0), (0, blocks * size - weight.shape[1])))
    mean = 0 if importance is None else importance.mean()
    # nothing comes in, or more than float32 holds: that says nothing of one channel against another
    weights = importance / mean if importance is not None and 0 < mean < np.inf else np.ones(weight.shape[1], np.float32)
    grouped = padded.reshape(rows, blocks, size)
    parts = np.pad(weights, (0, blocks * size - len(weights))).reshape(blocks, size)
    # a channel that the text never reached keeps a little weight; padding has none to keep, its values are zero
    parts = np.maximum(parts, np.float32(1e-4))

    best = first.scales, first.zero_points
    least = _error(grouped, parts, *best, scheme)[0]
    # every scale first; then, at the best of them, the neighbouring zero points
    for ratio, shift in [*((ratio, 0) for ratio in RATIOS), *((1.0, shift) for shift in SHIFTS if not scheme.symmetric)]:
        scales, zeros = (first.scales * np.float32(ratio), first.zero_points) if shift == 0 else best
        trial = _fitted(grouped, parts, scales, _shifted(zeros, shift, scheme), scheme)
        error = _error(grouped, parts, *trial, scheme)[0]
        better = error < least
        least = np.where(better, error, least)
        best = np.where(better, trial[0], best[0]), _chosen(better, trial[1], best[1])
    if not scheme.symmetric:
        # A model that was fine-tuned for llama.cpp's Q4_0, or was one, lies on that grid: a block's own extreme has its scale.
        plain = rtn.quantize(weight, replace(scheme, symmetric=True)).scales, np.zeros_like(first.zero_points)
        better = _error(grouped, parts, *plain, scheme)[0] < least
        best = np.where(better, plain[0], best[0]), _chosen(better, plain[1], best[1])
    codes = _error(grouped, parts, *best, scheme)[1]
    return QTensor(scheme, first.shape, codes.astype(np.int8), best[0], best[1])


def _fitted(
    grouped: Values, parts: Values, scales: Values, zeros: NDArray[np.int8] | None, scheme: Scheme
) -> tuple[Values, NDArray[np.int8] | None]:
    """The scales that suit the codes best which these scales give, as the grid can hold them."""
    codes = rtn.nearest(grouped, scales, zeros, scheme).astype(np.float32)
    if zeros is not None:
        codes -= zeros[..., None]
    weighted = codes * parts
    above, below = np.einsum("rbs,rbs->rb", weighted, grouped), np.einsum("rbs,rbs->rb", weighted, codes)
    fitted = np.where(below > 0, above / np.where(below > 0, below, 1), scales).astype(np.float32)
    if scheme.scales != "float32":
        fitted = np.where(fitted > 0, fitted, scales)
    return (rtn.bfloat16(fitted) if scheme.scales == "positive bfloat16" else fitted), zeros


def _error(
    grouped: Values, parts: Values, scales: Values, zeros: NDArray[np.int8] | None, scheme: Scheme
) -> tuple[Values, NDArray[np.int8]]:
    """Weighted squared error of every block, and the codes."""
    codes = rtn.nearest(grouped, scales, zeros, scheme)
    values = codes.astype(np.float32)
    if zeros is not None:
        values -= zeros[..., None]
    values *= scales[..., None]
    values -= grouped
    values *= values
    return np.einsum("rbs,bs->rb", values, parts), codes


def _shifted(zeros: NDArray[np.int8] | None, shift: int, scheme: Scheme) -> NDArray[np.int8] | None:
    return None if zeros is None else np.clip(zeros + shift, scheme.low, scheme.high).astype(np.int8)


def _chosen(better: NDArray[np.bool_], new: NDArray[np.int8] | None, old: NDArray[np.int8] | None) -> NDArray[np.int8] | None:
    return None if new is None or old is None else np.where(better, new, old)
