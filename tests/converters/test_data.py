"""Several graphs' data in one pass: each row is read once, whatever the back ends fuse, and every file is as if made alone."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.converters.data import DataLayout, Region, source_bytes, write_data
from edgellm.converters.onnx.data import QuantizedJob as OnnxJob
from edgellm.converters.quantizers import rtn
from edgellm.converters.tflite.data import QuantizedJob as TfliteJob
from edgellm.converters.weights import Array, LazyTensor, Stacked, Weight
from edgellm.errors import SourceError
from edgellm.scheme import QTensor, Scheme

ROWS = {"q": 40, "k": 9, "v": 23, "norm": 64, "o": 31}
ONNX, TFLITE = Scheme(4, 32, symmetric=False), Scheme(4, 32, scales="positive bfloat16")


class Counting(LazyTensor):
    """Random rows that remember how often they were read."""

    def __init__(self, rows: int, *, vector: bool = False) -> None:
        self.shape = (rows,) if vector else (rows, 64)
        self.values = np.random.default_rng(rows).standard_normal(self.shape).astype(np.float32)
        self.reads: Counter[int] = Counter()
        self._lock = threading.Lock()

    def rows(self, start: int, stop: int) -> Array:
        with self._lock:
            self.reads.update(range(start, stop))
        return self.values[start:stop].copy()


def source() -> dict[str, Counting]:
    return {name: Counting(rows, vector=name == "norm") for name, rows in ROWS.items()}


def fused(tensors: dict[str, Counting]) -> DataLayout:
    """Q, K and V as one matrix."""
    layout = DataLayout()
    OnnxJob.add(layout, Weight("q+k+v", Stacked([tensors["q"], tensors["k"], tensors["v"]])), ONNX)
    layout.add_float("norm", tensors["norm"])
    OnnxJob.add(layout, Weight("o", tensors["o"]), ONNX)
    return layout


def partly_fused(tensors: dict[str, Counting]) -> DataLayout:
    """The same weights, in another order and other stacks, one of them in a stack of stacks."""
    layout = DataLayout()
    TfliteJob.add(layout, Weight("o", tensors["o"]), TFLITE)
    TfliteJob.add(layout, Weight("v", tensors["v"]), TFLITE)
    TfliteJob.add(layout, Weight("k+q", Stacked([Stacked([tensors["k"]]), tensors["q"]])), TFLITE)
    layout.add_float("norm", tensors["norm"])
    return layout


def write(regions: list[Region], slice_bytes: int) -> int:
    """Float32 bytes that were said to be done."""
    done = []
    write_data(regions, rtn.quantize, slice_bytes=slice_bytes, workers=3, on_bytes=lambda name, count: done.append(count))
    return sum(done)


@pytest.mark.parametrize("slice_bytes", [1, 1500, 1 << 20])
def test_each_row_is_read_once_for_all_graphs(tmp_path: Path, slice_bytes: int) -> None:
    tensors = source()
    layouts = [fused(tensors), partly_fused(tensors)]
    done = write([Region(layout, tmp_path / str(n), 512 * n) for n, layout in enumerate(layouts)], slice_bytes)
    assert {name: dict(tensor.reads) for name, tensor in tensors.items()} == {
        name: dict.fromkeys(range(rows), 1) for name, rows in ROWS.items()
    }
    assert done == source_bytes(layouts) == source_bytes(layouts[:1]) == 4 * (64 * (40 + 9 + 23 + 31) + 64)


def test_each_file_is_as_if_made_alone(tmp_path: Path) -> None:
    together = source()
    write([Region(fused(together), tmp_path / "a"), Region(partly_fused(together), tmp_path / "b", 512)], 1500)
    write([Region(fused(source()), tmp_path / "a alone")], 1 << 20)
    write([Region(partly_fused(source()), tmp_path / "b alone", 512)], 1 << 20)
    for name in "ab":
        assert (tmp_path / name).read_bytes() == (tmp_path / f"{name} alone").read_bytes()


def test_the_values_are_those_of_the_whole_matrix(tmp_path: Path) -> None:
    """Codes of a stack made of other slices than its own: numpy quantizes the matrix at once."""
    tensors = source()
    layout = partly_fused(tensors)
    write([Region(fused(tensors), tmp_path / "a"), Region(layout, tmp_path / "b")], 1500)
    job = next(job for job in layout.jobs if job.name == "k+q")
    whole: QTensor = rtn.quantize(np.concatenate([tensors["k"].values, tensors["q"].values]), TFLITE)
    content = np.fromfile(tmp_path / "b", np.uint8)
    packed = content[job.codes.offset :][: job.codes.length].reshape(49, 32)  # type: ignore[attr-defined]
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(49, 64).astype(np.int8)
    np.testing.assert_array_equal(np.where(nibbles > 7, nibbles - 16, nibbles), whole.codes.reshape(49, 64))


def test_a_method_that_writes_to_its_weight_is_caught(tmp_path: Path) -> None:
    """The next graph gets the same array: it would be quantized twice."""

    def spoils(weight: NDArray[np.float32], scheme: Scheme, importance: object = None) -> QTensor:
        weight *= 0.5
        return rtn.quantize(weight, scheme)

    tensors = source()
    regions = [Region(fused(tensors), tmp_path / "a"), Region(partly_fused(tensors), tmp_path / "b")]
    with pytest.raises(ValueError, match="read-only"):
        write_data(regions, spoils, slice_bytes=1500, workers=2, on_bytes=lambda name, count: None)


def test_a_weight_that_only_the_second_graph_has_is_read_and_checked(tmp_path: Path) -> None:
    tensors = source()
    first, second = DataLayout(), partly_fused(tensors)
    first.add_float("norm", tensors["norm"])
    tensors["q"].values[39, 63] = np.inf
    with pytest.raises(SourceError, match=r"k\+q: the weight is not finite"):
        write([Region(first, tmp_path / "a"), Region(second, tmp_path / "b")], 1500)
