"""Between what the keys and values of a layer lie, and the 8-bit grid that follows from it."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.converters.weights import Array
from edgellm.scheme import CacheGrid
from edgellm.spec import Rotary

CODES = 127
KEYS, VALUES = (1.3, 0.2), (1.5, 0.25)  # margin and floor, see `_scales`


@dataclass(frozen=True, eq=False)
class CacheRange:
    """Between what one layer's keys and values lie, float32 [kv_heads, head_dim]: keys after rotation, wherever they stand.

    Attributes:
        low, high: of keys.
        reach: of values, the largest magnitude.
    """

    low: Array
    high: Array
    reach: Array

    def grid(self, *, centered: bool) -> CacheGrid:
        """The 8-bit grid.

        Args:
            centered: whether the back end can take centers off keys.
        """
        centers = (self.low + self.high) * np.float32(0.5 if centered else 0)
        keys = _scales(np.maximum(self.high - centers, centers - self.low), *KEYS)
        return CacheGrid(keys, _scales(self.reach, *VALUES), centers)

    def joined(self, other: CacheRange) -> CacheRange:
        """What holds for both."""
        reach = np.maximum(self.reach, other.reach)
        return CacheRange(np.minimum(self.low, other.low), np.maximum(self.high, other.high), reach)


def lie_in(path: Path, constants: Iterable[Array]) -> bool:
    """Whether the bytes of all these float32 arrays are somewhere in a file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return all(data.find(np.ascontiguousarray(each, "<f4").tobytes()) >= 0 for each in constants)


def turned(key: Array, rotary: Rotary, context: int) -> tuple[Array, Array]:
    """Lowest and highest value [heads, d] that channels of keys [heads, T, d] take, wherever in the context they stand.

    A pair of channels turns by its frequency at every position: slow ones keep their place, fast ones go round.
    """
    half = len(rotary.frequencies)
    first, second, rest = key[..., :half], key[..., half : 2 * half], key[..., 2 * half :]
    length, angle = np.hypot(first, second), np.arctan2(second, first)
    arc = np.array(rotary.frequencies, np.float32) * context
    ends = [_cosines(angle, arc), _cosines(angle - np.float32(np.pi / 2), arc)]  # a sine is a cosine of another angle
    low = np.concatenate([*(length * np.float32(rotary.factor) * end[0] for end in ends), rest], axis=-1)
    high = np.concatenate([*(length * np.float32(rotary.factor) * end[1] for end in ends), rest], axis=-1)
    return low.min(axis=1), high.max(axis=1)


def _cosines(angle: Array, arc: Array) -> tuple[Array, Array]:
    """Lowest and highest cosine on the way from `angle` to `angle + arc`."""
    whole = np.float32(2 * np.pi)
    here, there = np.cos(angle), np.cos(angle + arc)
    to_top, to_bottom = -angle % whole, (np.float32(np.pi) - angle) % whole
    low = np.where(to_bottom <= arc, np.float32(-1), np.minimum(here, there))
    high = np.where(to_top <= arc, np.float32(1), np.maximum(here, there))
    return low, high


def _scales(reach: Array, margin: float, floor: float) -> Array:
    """Scales [heads, d] for channels that reach so far from their center in the text.

    Args:
        margin: codes cover so many times what the text showed: cutting a value off costs more than a coarser step.
        floor: no scale is smaller than this share of the head's largest: what a short text shows of a quiet channel is little.
    """
    scales: Array = reach * np.float32(margin / CODES)
    scales = np.maximum(scales, np.float32(floor) * scales.max(axis=1, keepdims=True))
    scales[scales <= np.finfo(np.float32).tiny] = 1  # a head that is always zero
    return scales
