"""Calibration: what a text makes of a model's activations: ranges of keys and values, statistics of every linear's inputs.

The body runs over windows of the text on the numpy back end, with the source's own weights, layer by layer: what is held is
the hidden states of all windows, the activations of one, and a layer's weights, or slices of them where memory is short.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import numpy as np

from edgellm.converters import decoder
from edgellm.converters.cache_ranges import CacheRange, turned
from edgellm.converters.numpy_ops import NumpyOps, NumpyPositions, Tensor, heads_of
from edgellm.converters.ops import Linear
from edgellm.converters.statistics import Statistics
from edgellm.converters.weights import Array, Weight
from edgellm.errors import SourceError
from edgellm.spec import AttentionSpec, ModelSpec

OnLayer = Callable[[int, Mapping[str, Statistics]], None]


@dataclass(frozen=True)
class Calibration:
    """What a text showed.

    Attributes:
        cache: by layer.
        importance: by linear weight, float32 [in]: the mean square of every input channel.
        digest: sha256 of the text's token ids (int64, little endian).
        fixed: scales of what goes into a product in 16 bits and of what comes out of it, by the name of its weight.
    """

    cache: tuple[CacheRange, ...]
    importance: Mapping[str, Array]
    digest: str
    fixed: Mapping[str, tuple[float, float]] = field(default_factory=dict)


NOTHING = Calibration((), MappingProxyType({}), "")


@dataclass(frozen=True)
class Stage:
    """A calibration on its way: everything up to some layer.

    Attributes:
        hidden: what comes into the next layer, float32 [1, T, D] by window.
        cache, importance: as in Calibration, of the layers so far.
    """

    hidden: tuple[Array, ...]
    cache: tuple[CacheRange, ...] = ()
    importance: Mapping[str, Array] = field(default_factory=dict)


class Journal(Protocol):
    """Where stages are kept, so that a calibration that was stopped goes on where it was."""

    def last(self) -> Stage | None:
        """The last stage that was kept."""
        ...

    def keep(self, stage: Stage) -> None:
        """Keep a stage; the layers before it are done with."""
        ...


def calibrate(
    spec: ModelSpec,
    weights: decoder.Weights,
    windows: Sequence[Tensor],
    slice_bytes: int,
    *,
    hold: bool = False,
    hessians: bool = False,
    peaks: bool = False,
    on_layer: OnLayer | None = None,
    journal: Journal | None = None,
) -> Calibration:
    """Run the model over a text.

    Args:
        weights: float32 weights by canonical name.
        windows: token ids, int64 [T] each, every one a context of its own.
        slice_bytes: float32 bytes of a weight that are held at once.
        hold: keep a layer's weights while it runs over the windows, instead of reading them again for each.
        hessians, peaks: whether statistics have them.
        on_layer: called with the statistics of a layer's linears, by the names of their weights, as soon as they are known.
        journal: keeps stages.

    Raises:
        SourceError: an activation is not finite.
    """
    ops = CalibrationOps(slice_bytes, spec.max_context, hold=hold, hessians=hessians, peaks=peaks)
    with np.errstate(all="ignore"):  # what is not finite is said below, or by whoever reads the weights next
        stage = (None if journal is None else journal.last()) or Stage(_embedded(spec, weights, ops, windows))
        for layer in range(len(stage.cache), len(spec.layers)):
            hidden = tuple(_through(spec, weights, ops, layer, x) for x in stage.hidden)
            found = ops.take()
            cache, importance = ops.ranges[layer], {name: each.importance for name, each in found.items()}
            if not all(np.isfinite(part).all() for part in (cache.low, cache.high, cache.reach, *importance.values())):
                raise SourceError(
                    "the model's activations over a text are not finite", where="calibration", fix="use --method rtn --kv fp32"
                )
            if on_layer is not None:
                on_layer(layer, found)
            stage = Stage(hidden, (*stage.cache, cache), {**stage.importance, **importance})
            if journal is not None:
                journal.keep(stage)
    return Calibration(stage.cache, stage.importance, digest(windows))


def digest(windows: Sequence[Tensor]) -> str:
    """sha256 of token ids."""
    return hashlib.sha256(b"".join(np.asarray(ids, "<i8").tobytes() for ids in windows)).hexdigest()


def _embedded(spec: ModelSpec, weights: decoder.Weights, ops: CalibrationOps, windows: Sequence[Tensor]) -> tuple[Array, ...]:
    return tuple(ops.embed(ids[None], weights("embed.weight"), spec.embed_scale) for ids in windows)


def _through(spec: ModelSpec, weights: decoder.Weights, ops: CalibrationOps, layer: int, x: Array) -> Array:
    """Hidden states after one layer, over a context that has nothing else in it."""
    return decoder.layer(spec, weights, ops, layer, x, ops.positions(x.shape[1], "all"))


class CalibrationOps(NumpyOps):
    """`Ops` that watch inputs, keys and values go by.

    Attributes:
        ranges: of the cache, by layer.
    """

    def __init__(
        self, slice_bytes: int, context: int, *, hold: bool = False, hessians: bool = False, peaks: bool = False
    ) -> None:
        super().__init__()
        self._slice_bytes, self._context, self._hold = slice_bytes, context, hold
        self._hessians, self._peaks = hessians, peaks
        self._held: dict[str, Array] = {}
        self._sums: dict[tuple[str, ...], _Sums] = {}
        self.ranges: dict[int, CacheRange] = {}

    def take(self) -> dict[str, Statistics]:
        """Statistics by the name of the weight, of the linears since the last time; those of one input are one object."""
        found: dict[str, Statistics] = {}
        for names, sums in self._sums.items():
            found |= dict.fromkeys(names, sums.means())
        self._sums.clear()
        self._held.clear()
        return found

    def array(self, weight: Weight) -> Array:
        """A small weight: it is read again when it is wanted again."""
        return weight.tensor.array()

    def embed(self, ids: Tensor, table: Weight, scale: float) -> Tensor:
        different, where = np.unique(ids, return_inverse=True)
        rows = np.concatenate([table.tensor.rows(row, row + 1) for row in different.tolist()])
        found: Tensor = rows[where.reshape(ids.shape)] * np.float32(scale)
        return found

    def linears(self, x: Tensor, linears: Sequence[Linear]) -> list[Tensor]:
        names = tuple(linear.weight.name for linear in linears)
        self._sums.setdefault(names, _Sums()).add(x.reshape(-1, x.shape[-1]), self._hessians, self._peaks)
        return [self._product(x, linear) for linear in linears]

    def _product(self, x: Tensor, linear: Linear) -> Tensor:
        tensor, name = linear.weight.tensor, linear.weight.name
        if self._hold and name not in self._held:
            self._held[name] = tensor.array()
        if name in self._held:
            y: Tensor = x @ self._held[name].T
        else:
            parts = [x @ tensor.rows(start, stop).T for start, stop in tensor.slices(self._slice_bytes)]
            y = np.concatenate(parts, axis=-1)
        return y if linear.bias is None else y + self.array(linear.bias)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, layer: int, positions: NumpyPositions) -> Tensor:
        key, value = heads_of(k, spec.kv_heads)[0], heads_of(v, spec.kv_heads)[0]
        low, high = (key.min(axis=1), key.max(axis=1)) if spec.rotary is None else turned(key, spec.rotary, self._context)
        if spec.softcap is not None:  # what scores have in common is not lost on softmax then: no centers
            high = np.maximum(high, -low)
            low = -high
        seen = CacheRange(low, high, np.abs(value).max(axis=1))
        self.ranges[layer] = seen if layer not in self.ranges else self.ranges[layer].joined(seen)
        return super().attention(q, k, v, spec, layer, positions)


class _Sums:
    """Sums over tokens of one input."""

    def __init__(self) -> None:
        self._tokens = 0
        self._squares: Array | None = None
        self._products: Array | None = None
        self._peaks: Array | None = None

    def add(self, x: Array, hessian: bool, peaks: bool) -> None:
        """Add rows x [tokens, in]."""
        squares: Array = np.einsum("ti,ti->i", x, x)
        self._squares = squares if self._squares is None else self._squares + squares
        if hessian:
            products = x.T @ x
            self._products = products if self._products is None else np.add(self._products, products, out=self._products)
        if peaks:
            largest = np.maximum(x.max(axis=0), -x.min(axis=0))
            self._peaks = largest if self._peaks is None else np.maximum(self._peaks, largest)
        self._tokens += len(x)

    def means(self) -> Statistics:
        """Of all rows so far."""
        if self._squares is None:
            raise ValueError("no rows")
        count = np.float32(self._tokens)
        return Statistics(self._squares / count, None if self._products is None else self._products / count, self._peaks)
