"""External data: every large initializer of a graph in one file, laid out first and filled slice by slice.

Sizes follow from shapes and schemes, so offsets are known before a weight is read, the graph can be written at once, and
weights stream through a few megabytes of memory into their places. We write the file ourselves: graphs over 2 GB work,
and two initializers may share one place (a tied embedding).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.quantizers import Quantize
from edgellm.converters.targets import OnBytes
from edgellm.converters.weights import LazyTensor
from edgellm.errors import SourceError
from edgellm.scheme import QTensor, Scheme

ALIGNMENT = 4096  # a page: the runtime maps initializers in place


@dataclass(frozen=True)
class Place:
    """Where an array lies in the data file."""

    offset: int
    length: int


@dataclass(frozen=True)
class FloatJob:
    """A float32 tensor and its place."""

    name: str
    tensor: LazyTensor
    place: Place


@dataclass(frozen=True)
class QuantizedJob:
    """A tensor to quantize, and the places of its codes, scales and zero points.

    Codes are unsigned (signed code + 2**(bits-1)), [out, blocks, block * bits / 8], 4-bit codes low nibble first: the
    layout of MatMulNBits' B and, read as rows, of GatherBlockQuantized's data. Zero points are packed the same way.
    """

    name: str
    tensor: LazyTensor
    scheme: Scheme
    codes: Place
    scales: Place
    zero_points: Place | None


class DataLayout:
    """Hands out places one behind the other and keeps the list of what belongs there."""

    def __init__(self) -> None:
        self.size = 0
        self.jobs: list[FloatJob | QuantizedJob] = []

    def add_float(self, name: str, tensor: LazyTensor) -> FloatJob:
        """Reserve room for a float32 tensor."""
        job = FloatJob(name, tensor, self._reserve(4 * int(np.prod(tensor.shape, dtype=np.int64))))
        self.jobs.append(job)
        return job

    def add_quantized(self, name: str, tensor: LazyTensor, scheme: Scheme) -> QuantizedJob:
        """Reserve room for a quantized matrix [out, in]."""
        rows, blocks = tensor.shape[0], scheme.blocks(tensor.shape[1])
        codes = self._reserve(rows * blocks * scheme.block * scheme.bits // 8)
        scales = self._reserve(4 * rows * blocks)
        zeros = None if scheme.symmetric else self._reserve(rows * -(-blocks * scheme.bits // 8))
        job = QuantizedJob(name, tensor, scheme, codes, scales, zeros)
        self.jobs.append(job)
        return job

    @property
    def source_bytes(self) -> int:
        """Bytes of all tensors as float32: what there is to read and quantize."""
        return sum(4 * int(np.prod(job.tensor.shape, dtype=np.int64)) for job in self.jobs)

    def _reserve(self, length: int) -> Place:
        place = Place(self.size, length)
        self.size = -(-(self.size + length) // ALIGNMENT) * ALIGNMENT
        return place


def write_data(
    path: Path, layout: DataLayout, quantize: Quantize, *, slice_bytes: int, workers: int, on_bytes: OnBytes
) -> None:
    """Read, quantize and write every tensor of the layout.

    Args:
        path: the file to make.
        quantize: the method; called on slices of rows.
        slice_bytes: float32 bytes of one slice; each worker holds about five times that.
        workers: threads; numpy releases the interpreter's lock in the work that counts.
        on_bytes: called with a tensor's name and the float32 bytes just finished.

    Raises:
        SourceError: a weight holds NaN or infinity.
        OSError: the disk is full or the file cannot be written.
    """
    with path.open("wb") as file:
        file.truncate(layout.size)
        _reserve_on_disk(file, layout.size)
    files = _FilePerThread(path)

    def work(job: FloatJob | QuantizedJob, start: int, stop: int) -> tuple[str, int]:
        values = job.tensor.rows(start, stop)
        if not np.isfinite(values.sum(dtype=np.float64)):
            raise SourceError("the weight is not finite (NaN or infinity)", where=job.name, fix="get the model again")
        if isinstance(job, FloatJob):
            _put(files.get(), job.place, start, job.tensor.shape[0], values)
        else:
            _put_quantized(files.get(), job, start, quantize(values, job.scheme))
        return job.name, values.nbytes

    pool = ThreadPoolExecutor(workers)
    try:
        pending: set[Future[tuple[str, int]]] = set()
        for job, start, stop in _slices(layout, slice_bytes):
            pending.add(pool.submit(work, job, start, stop))
            if len(pending) > workers:  # a short queue: memory is bounded by what is under way
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    on_bytes(*future.result())
        for future in pending:
            on_bytes(*future.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        files.close()


class _FilePerThread:
    """The data file opened once per worker: seek and write then need no lock, and no call that Windows lacks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: dict[int, FileIO] = {}

    def get(self) -> FileIO:
        thread = threading.get_ident()
        if thread not in self._opened:
            self._opened[thread] = self._path.open("r+b", buffering=0)
        return self._opened[thread]

    def close(self) -> None:
        for file in self._opened.values():
            file.close()


def pack_codes(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Signed codes [..., n] as unsigned bytes: [..., n] for 8 bit, [..., n/2] for 4 bit, low nibble first."""
    unsigned = codes.view(np.uint8) + np.uint8(1 << (bits - 1))
    if bits == 8:
        return unsigned
    return unsigned[..., 0::2] | (unsigned[..., 1::2] << np.uint8(4))


def _slices(layout: DataLayout, slice_bytes: int) -> Iterator[tuple[FloatJob | QuantizedJob, int, int]]:
    for job in layout.jobs:
        for start, stop in job.tensor.slices(slice_bytes):
            yield job, start, stop


def _put_quantized(file: BinaryIO, job: QuantizedJob, start: int, part: QTensor) -> None:
    rows = job.tensor.shape[0]
    _put(file, job.codes, start, rows, pack_codes(part.codes, job.scheme.bits))
    _put(file, job.scales, start, rows, part.scales)
    if job.zero_points is not None and part.zero_points is not None:
        zeros = part.zero_points
        if job.scheme.bits == 4 and zeros.shape[1] % 2:
            zeros = np.pad(zeros, ((0, 0), (0, 1)), constant_values=-8)  # fills the last byte's high nibble with 0
        _put(file, job.zero_points, start, rows, pack_codes(zeros, job.scheme.bits))


def _put(file: BinaryIO, place: Place, start: int, rows: int, values: NDArray[Any]) -> None:
    file.seek(place.offset + place.length // rows * start)
    data = np.ascontiguousarray(values).data.cast("B")
    while data:
        data = data[file.write(data) :]


def _reserve_on_disk(file: BinaryIO, size: int) -> None:
    """Claim the blocks now where the system can, so that a full disk shows before the work and not after it."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
