"""The data of a graph: every large tensor in one file, laid out first and filled slice by slice.

Sizes follow from shapes and schemes, so offsets are known before a weight is read, the graph can be made at once, and
weights stream through a few megabytes of memory into their places. Two tensors of a graph may share one place (a tied
embedding). How a quantized weight is packed is the back end's: its jobs write themselves.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.quantizers import Quantize
from edgellm.converters.weights import Array, LazyTensor
from edgellm.errors import SourceError

OnBytes = Callable[[str, int], None]
ALIGNMENT = 4096  # a page: the runtime maps initializers in place


@dataclass(frozen=True)
class Place:
    """Where an array lies in the data file."""

    offset: int
    length: int


class Job(Protocol):
    """A tensor and its places."""

    @property
    def name(self) -> str: ...

    @property
    def tensor(self) -> LazyTensor: ...

    def write(self, data: DataFile, start: int, values: Array, quantize: Quantize) -> None:
        """Put rows from `start` on, float32, to their places."""
        ...


@dataclass(frozen=True)
class FloatJob:
    """A float32 tensor and its place."""

    name: str
    tensor: LazyTensor
    place: Place

    def write(self, data: DataFile, start: int, values: Array, quantize: Quantize) -> None:
        data.put(self.place, start, self.tensor.shape[0], values)


class DataLayout:
    """Hands out places one behind the other and keeps the list of what belongs there."""

    def __init__(self) -> None:
        self.size = 0
        self.jobs: list[Job] = []

    def add_float(self, name: str, tensor: LazyTensor) -> FloatJob:
        """Reserve room for a float32 tensor."""
        job = FloatJob(name, tensor, self.reserve(4 * int(np.prod(tensor.shape, dtype=np.int64))))
        self.jobs.append(job)
        return job

    @property
    def source_bytes(self) -> int:
        """Bytes of all tensors as float32: what there is to read and quantize."""
        return sum(4 * int(np.prod(job.tensor.shape, dtype=np.int64)) for job in self.jobs)

    def reserve(self, length: int) -> Place:
        """Room for `length` bytes, from a page's start on."""
        place = Place(self.size, length)
        self.size = -(-(self.size + length) // ALIGNMENT) * ALIGNMENT
        return place


def write_data(
    path: Path,
    layout: DataLayout,
    quantize: Quantize,
    *,
    base: int = 0,
    slice_bytes: int,
    workers: int,
    on_bytes: OnBytes,
) -> None:
    """Read, quantize and write every tensor of the layout.

    Args:
        path: the file to make.
        base: byte of the file where the layout begins.
        quantize: the method; called on slices of rows.
        slice_bytes: float32 bytes of one slice; each worker holds about five times that.
        workers: threads; numpy releases the interpreter's lock in the work that counts.
        on_bytes: called with a tensor's name and the float32 bytes just finished.

    Raises:
        SourceError: a weight holds NaN or infinity.
        OSError: the disk is full or the file cannot be written.
    """
    with path.open("wb") as file:
        file.truncate(base + layout.size)
        _reserve_on_disk(file, base + layout.size)
    data = DataFile(path, base)

    def work(job: Job, start: int, stop: int) -> tuple[str, int]:
        values = job.tensor.rows(start, stop)
        if not np.isfinite(values.sum(dtype=np.float64)):
            raise SourceError("the weight is not finite (NaN or infinity)", where=job.name, fix="get the model again")
        job.write(data, start, values, quantize)
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
        data.close()


class DataFile:
    """The file that is being filled, opened once per worker: seek and write then need no lock, and no call that Windows lacks.

    Args:
        path: a file of its full size.
        base: where places count from.
    """

    def __init__(self, path: Path, base: int = 0) -> None:
        self._path, self._base = path, base
        self._opened: dict[int, FileIO] = {}

    def put(self, place: Place, start: int, rows: int, values: NDArray[Any]) -> None:
        """Write values of rows from `start` on, where `place` holds `rows` rows."""
        thread = threading.get_ident()
        if thread not in self._opened:
            self._opened[thread] = self._path.open("r+b", buffering=0)
        file = self._opened[thread]
        file.seek(self._base + place.offset + place.length // rows * start)
        data = np.ascontiguousarray(values).data.cast("B")
        while data:
            data = data[file.write(data) :]

    def close(self) -> None:
        """Close what the workers opened."""
        for file in self._opened.values():
            file.close()


def _slices(layout: DataLayout, slice_bytes: int) -> Iterator[tuple[Job, int, int]]:
    for job in layout.jobs:
        for start, stop in job.tensor.slices(slice_bytes):
            yield job, start, stop


def _reserve_on_disk(file: BinaryIO, size: int) -> None:
    """Claim the blocks now where the system can, so that a full disk shows before the work and not after it."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
