"""Lazy tensors: a weight is read in slices of rows, changed on the way, and never held whole.

Every transform that stands between a checkpoint and a back end (un-permuting, merging a LoRA, folding a factor,
taking a slice of a fused matrix) is a small LazyTensor around another one, so anonymous memory is bounded by the
slice that is being worked on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgellm.scheme import QTensor, Recipe, Scheme

Array = NDArray[np.float32]
Number = TypeVar("Number", bound=np.number[Any])


class LazyTensor(ABC):
    """A matrix [rows, columns] or vector [rows] that gives float32 slices of its rows on demand."""

    shape: tuple[int, ...]

    @abstractmethod
    def rows(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop` as float32 [stop - start, ...]; the caller may write to the result."""

    def on_grid(self, scheme: Scheme, start: int, stop: int) -> QTensor | None:
        """Rows as codes of a grid, where they were settled before, by the checkpoint or by a method for whole weights."""
        return None

    def array(self) -> Array:
        """The whole tensor, float32."""
        return self.rows(0, self.shape[0])

    def parts(self) -> Sequence[tuple[LazyTensor, int]]:
        """The tensors that lie below one another in this one, each with the row where it begins: for most, itself at 0."""
        return [(self, 0)]

    def slices(self, max_bytes: int) -> Iterator[tuple[int, int]]:
        """Row ranges that cover the tensor, each at most `max_bytes` as float32 (but at least one row)."""
        row_bytes = 4 * int(np.prod(self.shape[1:], dtype=np.int64))
        step = max(1, max_bytes // max(row_bytes, 1))
        for start in range(0, self.shape[0], step):
            yield start, min(start + step, self.shape[0])


class InMemory(LazyTensor):
    """An array that is already here."""

    def __init__(self, values: Array) -> None:
        self.shape = values.shape
        self._values = values

    def rows(self, start: int, stop: int) -> Array:
        return np.array(self._values[start:stop], dtype=np.float32)


class RowRange(LazyTensor):
    """Rows `start` to `stop` of another tensor: one projection of a fused matrix."""

    def __init__(self, base: LazyTensor, start: int, stop: int) -> None:
        self.shape = (stop - start, *base.shape[1:])
        self._base, self._start = base, start

    def rows(self, start: int, stop: int) -> Array:
        return self._base.rows(self._start + start, self._start + stop)

    def on_grid(self, scheme: Scheme, start: int, stop: int) -> QTensor | None:
        return self._base.on_grid(scheme, self._start + start, self._start + stop)


class Unsettled(LazyTensor):
    """The values of another tensor without the codes that it brings: they will be rounded anew."""

    def __init__(self, base: LazyTensor) -> None:
        self.shape = base.shape
        self._base = base

    def rows(self, start: int, stop: int) -> Array:
        return self._base.rows(start, stop)


class Affine(LazyTensor):
    """`scale * base + shift`, elementwise: a residual multiplier folded in, or gemma's `1 + weight` norms."""

    def __init__(self, base: LazyTensor, scale: float = 1.0, shift: float = 0.0) -> None:
        self.shape = base.shape
        self._base, self._scale, self._shift = base, np.float32(scale), np.float32(shift)

    def rows(self, start: int, stop: int) -> Array:
        values = self._base.rows(start, stop)
        values *= self._scale
        values += self._shift
        return values

    def on_grid(self, scheme: Scheme, start: int, stop: int) -> QTensor | None:
        """A factor goes into the scales, which float32 holds as exactly as it holds the values times the factor."""
        part = self._base.on_grid(scheme, start, stop) if self._shift == 0 and scheme.scales == "float32" else None
        return None if part is None else replace(part, scales=part.scales * self._scale)


class Unpermuted(LazyTensor):
    """Undoes the row order in which llama.cpp stores Q and K of llama-family models.

    It keeps rotated pairs as neighbours (0, h, 1, h+1, ...) where h is half a head; transformers, and the rotary
    that we use, want (0, 1, ..., h, h+1, ...).
    """

    def __init__(self, base: LazyTensor, heads: int) -> None:
        self.shape = base.shape
        self._base, self._head_dim = base, base.shape[0] // heads

    def rows(self, start: int, stop: int) -> Array:
        first, last = self._heads(start, stop)
        return self._ordered(self._base.rows(first, last))[start - first : stop - first]

    def on_grid(self, scheme: Scheme, start: int, stop: int) -> QTensor | None:
        first, last = self._heads(start, stop)
        part = self._base.on_grid(scheme, first, last)
        if part is None:
            return None
        wanted = slice(start - first, stop - first)
        codes, scales = self._ordered(part.codes)[wanted], self._ordered(part.scales)[wanted]
        zeros = None if part.zero_points is None else self._ordered(part.zero_points)[wanted]
        return QTensor(scheme, (stop - start, part.shape[1]), codes, scales, zeros)

    def _heads(self, start: int, stop: int) -> tuple[int, int]:
        """The rows of the heads that these rows are of."""
        d = self._head_dim
        return start // d * d, -(-stop // d) * d

    def _ordered(self, values: NDArray[Number]) -> NDArray[Number]:
        d = self._head_dim
        pairs = values.reshape(len(values) // d, d // 2, 2, *values.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


class Stacked(LazyTensor):
    """Several tensors of equal width one below the other: Q, K and V as one matrix."""

    def __init__(self, parts: Sequence[LazyTensor]) -> None:
        self.shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        self._parts = tuple(parts)

    def rows(self, start: int, stop: int) -> Array:
        out = np.empty((stop - start, *self.shape[1:]), np.float32)
        base = 0
        for part in self._parts:
            low, high = max(start, base), min(stop, base + part.shape[0])
            if low < high:
                out[low - start : high - start] = part.rows(low - base, high - base)
            base += part.shape[0]
        return out

    def parts(self) -> Sequence[tuple[LazyTensor, int]]:
        found, base = [], 0
        for part in self._parts:
            found += [(inner, base + row) for inner, row in part.parts()]
            base += part.shape[0]
        return found


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor by its canonical name, with the scheme that the recipe gives it (None: float32).

    Attributes:
        importance: float32 [in], mean square of every input channel over a text, for methods that weigh errors by it.
        activations: bits of what comes into its product, where the weight has a scheme; see `Recipe`.
    """

    name: str
    tensor: LazyTensor
    scheme: Scheme | None = None
    importance: Array | None = None
    activations: int = 8


def on_grids(
    tensors: Callable[[str], LazyTensor], recipe: Recipe, importance: Mapping[str, Array] = MappingProxyType({})
) -> Callable[[str], Weight]:
    """Weights by canonical name, each made once, with the schemes that a recipe gives them."""
    return cache(
        lambda name: Weight(name, tensors(name), recipe.scheme(name), importance.get(name), recipe.activations_of(name))
    )
