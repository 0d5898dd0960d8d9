"""Lazy tensors that transforms are made of: rows changed one by one, in groups, or all at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from edgellm.converters.weights import Array, LazyTensor

Change = Callable[[Array], Array]  # of float32 rows that it may overwrite, to as many rows of the same shape


class Grouped(LazyTensor):
    """Another tensor whose rows are changed in groups of neighbours; a group is never cut.

    Args:
        base: the tensor.
        change: what is done to whole groups.
        size: rows of a group; the rows of base are a multiple of it.
    """

    def __init__(self, base: LazyTensor, change: Change, size: int = 1) -> None:
        self.shape = base.shape
        self._base, self._change, self._size = base, change, size

    def rows(self, start: int, stop: int) -> Array:
        first, last = start // self._size * self._size, -(-stop // self._size) * self._size
        return self._change(self._base.rows(first, last))[start - first : stop - first]


class Recent:
    """The last few whole tensors, so that slices of one do not make it again.

    Two: where one tensor ends and the next one begins, workers ask for slices of both.
    """

    def __init__(self, room: int = 2) -> None:
        self._room, self._lock = room, threading.Lock()
        self._kept: OrderedDict[LazyTensor, Array] = OrderedDict()

    def get(self, key: LazyTensor, make: Callable[[], Array]) -> Array:
        """The array of this tensor, made if it is not there; not to be written to."""
        with self._lock:  # others wait: they want the same one, or memory that is not to be had twice
            if key not in self._kept:
                while len(self._kept) >= self._room:
                    self._kept.popitem(last=False)
                self._kept[key] = make()
            return self._kept[key]


class Whole(LazyTensor):
    """Another tensor whose rows can only be changed together; `recent` is shared by all of a model's."""

    def __init__(self, base: LazyTensor, change: Change, recent: Recent) -> None:
        self.shape = base.shape
        self._base, self._change, self._recent = base, change, recent

    def rows(self, start: int, stop: int) -> Array:
        if (start, stop) == (0, self.shape[0]):
            return self._change(self._base.array())
        return self._recent.get(self, lambda: self._change(self._base.array()))[start:stop].copy()


class Made(LazyTensor):
    """A tensor that is computed whole whenever it is asked for: a small one, or one that nobody asks for often."""

    def __init__(self, shape: tuple[int, ...], make: Callable[[], Array]) -> None:
        self.shape = shape
        self._make = make

    def rows(self, start: int, stop: int) -> Array:
        return self._make()[start:stop].copy()


class Scaled(LazyTensor):
    """Another tensor times a factor for each row, and one for each column, where these are given."""

    def __init__(self, base: LazyTensor, rows: Array | None = None, columns: Array | None = None) -> None:
        self.shape = base.shape
        self._base, self._rows, self._columns = base, rows, columns

    def rows(self, start: int, stop: int) -> Array:
        values = self._base.rows(start, stop)
        if self._rows is not None:
            values *= self._rows[start:stop].reshape(-1, *(1 for _ in self.shape[1:]))
        if self._columns is not None:
            values *= self._columns
        return values
