"""Calibration: what a short text makes of a model's activations: ranges of keys and values, importance of inputs.

The body runs once over the text on the numpy back end, with the source's own weights. They are read in slices and never kept,
so memory is bounded by a layer's activations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from tokenizers import Tokenizer

from edgellm.converters import decoder
from edgellm.converters.numpy_ops import NumpyOps, NumpyPositions, Tensor, heads_of
from edgellm.converters.ops import Linear
from edgellm.converters.weights import Array, Weight
from edgellm.errors import SourceError
from edgellm.scheme import CacheGrid
from edgellm.spec import AttentionSpec, ModelSpec, Rotary

TEXT = Path(__file__).with_name("calibration.txt")
TOKENS = 320
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


@dataclass(frozen=True)
class Calibration:
    """What a text showed.

    Attributes:
        cache: by layer.
        importance: by linear weight, float32 [in]: the mean square of every input channel.
        digest: sha256 of the text's token ids (int64, little endian).
        peaks: by linear weight, float32 [in]: the largest magnitude of every input channel.
    """

    cache: tuple[CacheRange, ...]
    importance: Mapping[str, Array]
    digest: str
    peaks: Mapping[str, Array] = field(default_factory=dict)


NOTHING = Calibration((), MappingProxyType({}), "")


def calibrate(spec: ModelSpec, weights: decoder.Weights, tokenizer: bytes, slice_bytes: int) -> Calibration:
    """Run the model over the calibration text.

    Args:
        weights: float32 weights by canonical name.
        tokenizer: content of tokenizer.json.
        slice_bytes: float32 bytes of a weight that are held at once.

    Raises:
        SourceError: an activation is not finite, or the tokenizer makes nothing of the text that the model knows.
    """
    ids = _ids(tokenizer, spec)
    tokens = np.array([ids], dtype="<i8")
    ops = CalibrationOps(slice_bytes, spec.max_context)
    positions = ops.positions(len(ids), "all")
    x = ops.embed(tokens, weights("embed.weight"), spec.embed_scale)
    with np.errstate(all="ignore"):  # what is not finite is said below, or by whoever reads the weights next
        decoder.body(spec, weights, ops, x, positions)
    ranges = tuple(ops.ranges[layer] for layer in range(len(spec.layers)))
    seen = [*(part for each in ranges for part in (each.low, each.high, each.reach)), *ops.importance.values()]
    if not all(np.isfinite(part).all() for part in seen):
        raise SourceError(
            "the model's activations over a short text are not finite", where="calibration", fix="use --method rtn --kv fp32"
        )
    return Calibration(ranges, ops.importance, hashlib.sha256(tokens.tobytes()).hexdigest(), ops.peaks)


def _ids(tokenizer: bytes, spec: ModelSpec) -> list[int]:
    """The text's first tokens."""
    try:
        ids = Tokenizer.from_buffer(tokenizer).encode(TEXT.read_text(encoding="utf-8")).ids[: min(TOKENS, spec.max_context)]
    except Exception as error:  # tokenizers has no class of its own for what it cannot read
        reason = str(error).partition("\n")[0]
        raise SourceError(
            f"the tokenizer cannot be used: {reason}", where="tokenizer.json", fix="get the model again"
        ) from error
    if not ids:
        raise SourceError("the tokenizer makes no tokens of a text", where="tokenizer.json", fix="get the model again")
    if max(ids) >= spec.vocab_size:
        raise SourceError(
            f"the tokenizer makes a token {max(ids)}, and the model has {spec.vocab_size}",
            where="tokenizer.json",
            fix="get the model again",
        )
    return ids


class CalibrationOps(NumpyOps):
    """`Ops` that watch inputs, keys and values go by, and hold a weight only slice by slice.

    Attributes:
        ranges: of the cache, by layer.
        importance, peaks: of inputs, by the name of the linear's weight.
    """

    def __init__(self, slice_bytes: int, context: int) -> None:
        super().__init__()
        self._context = context
        self.ranges: dict[int, CacheRange] = {}
        self.importance: dict[str, Array] = {}
        self.peaks: dict[str, Array] = {}
        self._slice_bytes = slice_bytes

    def array(self, weight: Weight) -> Array:
        """A small weight: it is read again when it is wanted again."""
        return weight.tensor.array()

    def embed(self, ids: Tensor, table: Weight, scale: float) -> Tensor:
        different, where = np.unique(ids, return_inverse=True)
        rows = np.concatenate([table.tensor.rows(row, row + 1) for row in different.tolist()])
        found: Tensor = rows[where.reshape(ids.shape)] * np.float32(scale)
        return found

    def linears(self, x: Tensor, linears: Sequence[Linear]) -> list[Tensor]:
        squares: Array = np.mean(x * x, axis=(0, 1))
        peaks: Array = np.abs(x).max(axis=(0, 1))
        self.importance |= {linear.weight.name: squares for linear in linears}
        self.peaks |= {linear.weight.name: peaks for linear in linears}
        return [self._product(x, linear) for linear in linears]

    def _product(self, x: Tensor, linear: Linear) -> Tensor:
        tensor = linear.weight.tensor
        parts = [x @ tensor.rows(start, stop).T for start, stop in tensor.slices(self._slice_bytes)]
        y: Tensor = np.concatenate(parts, axis=-1)
        return y if linear.bias is None else y + self.array(linear.bias)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, layer: int, positions: NumpyPositions) -> Tensor:
        key, value = heads_of(k, spec.kv_heads)[0], heads_of(v, spec.kv_heads)[0]
        low, high = (key.min(axis=1), key.max(axis=1)) if spec.rotary is None else turned(key, spec.rotary, self._context)
        if spec.softcap is not None:  # what scores have in common is not lost on softmax then: no centers
            high = np.maximum(high, -low)
            low = -high
        self.ranges[layer] = CacheRange(low, high, np.abs(value).max(axis=1))
        return super().attention(q, k, v, spec, layer, positions)


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
