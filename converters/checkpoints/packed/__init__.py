"""Linears that a folder keeps as packed integers: one file a format, named after `quant_method` in config.json.

A format is a function `layout(settings, where) -> Layout`: it refuses what it does not read and says how words become codes.
The tensors of a linear `x` are called x.qweight, x.qzeros and x.scales; together they stand for x.weight. The values are
`(code - zero point) * scale`, codes and zero points from 0 to 15, with a scale for each group of neighbouring inputs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.weights import Array, LazyTensor
from edgellm.errors import SourceError
from edgellm.scheme import QTensor, Scheme

if TYPE_CHECKING:
    from edgellm.converters.checkpoints.safetensors import SafetensorsFile, TensorInfo

Words = NDArray[np.int32]
Nibbles = NDArray[np.uint8]

WEIGHT, PARTS = "weight", ("qweight", "qzeros", "scales", "g_idx")
BITS, PER_WORD = 4, 8
HALF = 1 << (BITS - 1)  # between codes from 0 and signed ones
ORIGINAL = "convert from the original model in BF16, F16 or F32, or from a GGUF file"


@dataclass(frozen=True)
class Layout:
    """How a format packs.

    Attributes:
        group: inputs that share a scale; -1 for all.
        along_inputs: whether a word of qweight holds neighbouring inputs of one output, or neighbouring outputs.
        order: which of the eight each nibble of a word is, lowest nibble first.
        zero_shift: added to zero points as stored, modulo 16.
    """

    group: int
    along_inputs: bool
    order: tuple[int, ...]
    zero_shift: int


def available() -> tuple[str, ...]:
    """Names of the formats: the files of this folder."""
    return tuple(sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem != "__init__"))


def find(settings: Mapping[str, Any], where: Path) -> Layout:
    """The layout that a `quantization_config` of an available format describes; SourceError for one that is not read."""
    method = str(settings["quant_method"])
    layout: Callable[[Mapping[str, Any], Path], Layout] = importlib.import_module(f"{__name__}.{method}").layout
    return layout(settings, where)


def linears(tensors: Mapping[str, tuple[SafetensorsFile, TensorInfo]], layout: Layout) -> dict[str, LazyTensor]:
    """The weights that packed linears stand for, by their names in a model that is not packed."""
    stems = [name.removesuffix("qweight") for name in tensors if name.endswith(".qweight")]
    return {stem + WEIGHT: PackedTensor(_Stored(stem, tensors), layout) for stem in stems}


def refused(method: str, what: str, where: Path) -> SourceError:
    """What is said of a variant that is not read."""
    return SourceError(f"the weights are quantized by {method} {what}, which is not read", where=where, fix=ORIGINAL)


def group_size(method: str, settings: Mapping[str, Any], *keys: str, where: Path) -> int:
    """The number under the first of the keys that is there, checked."""
    size = next((settings[key] for key in keys if key in settings), None)
    if type(size) is not int or size == 0 or size < -1:
        raise refused(method, f"in groups of {str(size)[:20]}", where)
    return size


class PackedTensor(LazyTensor):
    """The weight [out, in] of a packed linear.

    Raises:
        SourceError: a part is missing, of another type, or of a shape that does not fit the others.
    """

    def __init__(self, stored: _Stored, layout: Layout) -> None:
        self._stored, self._layout = stored, layout
        rows, columns = self._matrix("qweight")
        self.shape = (columns, rows * PER_WORD) if layout.along_inputs else (columns * PER_WORD, rows)
        outputs, inputs = self.shape
        if not outputs or not inputs:
            raise self._damaged("it is empty")
        self._group = inputs if layout.group == -1 else min(layout.group, inputs)
        self._groups = groups = -(-inputs // self._group)
        for part, wanted in (("scales", (groups, outputs)), ("qzeros", (groups, -(-outputs // PER_WORD)))):
            if self._matrix(part) != wanted:
                raise self._damaged(f"{part} is {list(self._matrix(part))}, not {list(wanted)}")

    def rows(self, start: int, stop: int) -> Array:
        own = self._read(start, stop)
        order = np.arange(self.shape[1]) // self._group if self._order is None else self._order
        zeros = np.zeros_like(own.scales, np.int8) if own.zero_points is None else own.zero_points
        codes = own.codes.reshape(stop - start, self._groups * self._group)[:, : self.shape[1]]
        with np.errstate(all="ignore"):  # of a scale that is not finite; whoever reads the weights says so
            values: Array = (codes - zeros[:, order]).astype(np.float32) * own.scales[:, order]
        return values

    def on_grid(self, scheme: Scheme, start: int, stop: int) -> QTensor | None:
        """Codes, scales and zero points as stored; none where the inputs of a group are not neighbours."""
        if self._order is not None or self.shape[1] % self._group:
            return None
        return self._read(start, stop).on(scheme)

    @cached_property
    def _order(self) -> NDArray[np.int32] | None:
        """The group of every input, where groups are not neighbours (act-order); else None."""
        size = self._stored.shape("g_idx")
        if size is None or size == (0,):
            return None
        if size != (self.shape[1],):
            raise self._damaged(f"g_idx is {list(size)}, not {[self.shape[1]]}")
        order = self._stored.integers("g_idx")
        if order.min(initial=0) < 0 or order.max(initial=0) >= self._groups:
            raise self._damaged(f"g_idx names a group past {self._groups - 1}")
        return None if np.array_equal(order, np.arange(self.shape[1]) // self._group) else order

    @cached_property
    def _scheme(self) -> Scheme:
        """The grid; symmetric where every zero point is the middle."""
        zeros = self._zeros(slice(None))
        return Scheme(BITS, self._group if self._group < self.shape[1] else 0, symmetric=bool(np.all(zeros == HALF)))

    def _read(self, start: int, stop: int) -> QTensor:
        inputs = self.shape[1]
        words = slice(start // PER_WORD, -(-stop // PER_WORD))  # of outputs that lie eight in a word
        wanted = slice(start - words.start * PER_WORD, stop - words.start * PER_WORD)
        if self._layout.along_inputs:
            codes = _unpacked(self._stored.integers("qweight", slice(start, stop)).T, self._layout.order)
        else:
            codes = _unpacked(self._stored.integers("qweight", words), self._layout.order)[:, wanted].T
        padded = np.pad(_signed(codes), ((0, 0), (0, self._groups * self._group - inputs)))
        grouped = padded.reshape(stop - start, self._groups, self._group)
        scales = np.ascontiguousarray(self._stored.floats("scales", slice(start, stop)).T)
        zeros = None if self._scheme.symmetric else _signed(self._zeros(words)[:, wanted].T)
        return QTensor(self._scheme, (stop - start, inputs), grouped, scales, zeros)

    def _zeros(self, words: slice) -> Nibbles:
        """Zero points [groups, outputs] of these columns of words."""
        stored = _unpacked(self._stored.integers("qzeros", words), self._layout.order)
        return (stored + np.uint8(self._layout.zero_shift)) & np.uint8(15)

    def _matrix(self, part: str) -> tuple[int, int]:
        shape = self._stored.shape(part)
        if shape is None:
            raise self._damaged(f"it has no {part}")
        if len(shape) != 2:
            raise self._damaged(f"{part} is no matrix")
        return shape[0], shape[1]

    def _damaged(self, what: str) -> SourceError:
        return self._stored.error(what, "get the model again")


class _Stored:
    """The tensors of one packed linear as they lie in the folder."""

    def __init__(self, stem: str, tensors: Mapping[str, tuple[SafetensorsFile, TensorInfo]]) -> None:
        self._stem, self._tensors = stem, tensors

    def shape(self, part: str) -> tuple[int, ...] | None:
        """Of a part; None if it is not there."""
        found = self._tensors.get(self._stem + part)
        return None if found is None else found[1].shape

    def integers(self, part: str, columns: slice = slice(None)) -> Words:
        """Columns of a matrix, or a vector, int32."""
        return self._read(part, columns, integers=True)

    def floats(self, part: str, columns: slice = slice(None)) -> Array:
        """Columns of a matrix, float32."""
        return self._read(part, columns, integers=False)

    def error(self, what: str, fix: str) -> SourceError:
        """What is wrong with the linear."""
        file, _ = self._tensors[self._stem + "qweight"]
        return SourceError(f"{self._stem[:80] + WEIGHT!r}: {what}", where=file.path, fix=fix)

    def _read(self, part: str, columns: slice, *, integers: bool) -> NDArray[Any]:
        file, info = self._tensors[self._stem + part]
        if (info.dtype == "I32") != integers:
            raise self.error(f"{part} is stored as {info.dtype}", ORIGINAL)
        return file.stored(self._stem + part, columns)


def _signed(nibbles: Nibbles) -> NDArray[np.int8]:
    return (np.ascontiguousarray(nibbles) - np.uint8(HALF)).view(np.int8)


def _unpacked(words: Words, order: tuple[int, ...]) -> Nibbles:
    """Words [n, m] as nibbles [n, 8 m], each at the place that `order` gives it."""
    nibbles = np.empty((*words.shape, PER_WORD), np.uint8)
    for index, place in enumerate(order):
        nibbles[..., place] = (words.view(np.uint32) >> np.uint32(BITS * index)) & np.uint32(15)
    return nibbles.reshape(words.shape[0], words.shape[1] * PER_WORD)
