"""The data of graphs: every large tensor of one in one file, laid out first and filled slice by slice.

Sizes follow from shapes and schemes, so offsets are known before a weight is read, the graph can be made at once, and
weights stream through a few megabytes of memory into their places. Two tensors of a graph may share one place (a tied
embedding). How a quantized weight is packed is the back end's: its jobs write themselves.

Graphs of one bundle are filled in one pass. Back ends fuse weights as they like (Q, K and V as one matrix, or not), so what is
read is never a job's stack but the tensors in it: each slice of one is read once and given to all jobs that it is a part of.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.quantizers import Quantize
from edgellm.converters.weights import Array, LazyTensor
from edgellm.errors import SourceError
from edgellm.scheme import QTensor, Scheme

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

    def write(self, data: DataFile, start: int, rows: Rows, quantize: Quantize) -> None:
        """Put rows from `start` on to their places."""
        ...


class Rows:
    """Some rows of a tensor, for all jobs that it is a part of: floats are read once, and only if somebody wants them.

    Args:
        tensor: where they are.
        start, stop: which.
        name: of the weight, for errors.
    """

    def __init__(self, tensor: LazyTensor, start: int, stop: int, name: str) -> None:
        self._tensor, self._start, self._stop, self._name = tensor, start, stop, name

    def __len__(self) -> int:
        return self._stop - self._start

    @cached_property
    def values(self) -> Array:
        """float32 [rows, ...]; jobs share it, so it is read-only."""
        values = self._tensor.rows(self._start, self._stop)
        self._check(values)
        values.flags.writeable = False
        return values

    def quantized(self, scheme: Scheme, importance: Array | None, quantize: Quantize) -> QTensor:
        """The rows on a grid: as they were settled there before, else by the method."""
        settled = self._tensor.on_grid(scheme, self._start, self._stop)
        if settled is None:
            return quantize(self.values, scheme, importance)
        self._check(settled.scales)
        return settled

    def _check(self, values: Array) -> None:
        with np.errstate(invalid="ignore"):  # infinities of both signs
            finite = np.isfinite(values.sum(dtype=np.float64))
        if not finite:
            raise SourceError("the weight is not finite (NaN or infinity)", where=self._name, fix="get the model again")


@dataclass(frozen=True)
class FloatJob:
    """A float32 tensor and its place."""

    name: str
    tensor: LazyTensor
    place: Place

    def write(self, data: DataFile, start: int, rows: Rows, quantize: Quantize) -> None:
        data.put(self.place, start, self.tensor.shape[0], rows.values)


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

    def reserve(self, length: int) -> Place:
        """Room for `length` bytes, from a page's start on."""
        place = Place(self.size, length)
        self.size = -(-(self.size + length) // ALIGNMENT) * ALIGNMENT
        return place


@dataclass(frozen=True)
class Region:
    """A layout on disk: the file to make, and the byte of it where the layout begins."""

    layout: DataLayout
    path: Path
    base: int = 0


def source_bytes(layouts: Sequence[DataLayout]) -> int:
    """Bytes of the tensors of all layouts as float32, each counted once: what there is to read."""
    return sum(4 * int(np.prod(tensor.shape, dtype=np.int64)) for tensor in _sharers(layouts))


def write_data(regions: Sequence[Region], quantize: Quantize, *, slice_bytes: int, workers: int, on_bytes: OnBytes) -> None:
    """Read, quantize and write every tensor of the layouts; what several have in common is read once.

    Args:
        regions: the files to make.
        quantize: the method; called on slices of rows, which it must leave as they are.
        slice_bytes: float32 bytes of one slice; each worker holds about five times that.
        workers: threads; numpy releases the interpreter's lock in the work that counts.
        on_bytes: called with a tensor's name and the float32 bytes just finished.

    Raises:
        SourceError: a weight holds NaN or infinity.
        OSError: the disk is full or a file cannot be written.
    """
    for region in regions:
        with region.path.open("wb") as file:
            file.truncate(region.base + region.layout.size)
            _reserve_on_disk(file, region.base + region.layout.size)
    files = [DataFile(region.path, region.base) for region in regions]
    sharers = _sharers([region.layout for region in regions])

    def work(tensor: LazyTensor, start: int, stop: int) -> tuple[str, int]:
        name = sharers[tensor][0].job.name
        rows = Rows(tensor, start, stop, name)
        for share in sharers[tensor]:
            share.job.write(files[share.layout], share.first_row + start, rows, quantize)
        return name, 4 * (stop - start) * int(np.prod(tensor.shape[1:], dtype=np.int64))

    pool = ThreadPoolExecutor(workers)
    try:
        pending: set[Future[tuple[str, int]]] = set()
        for tensor in sharers:
            for start, stop in tensor.slices(slice_bytes):
                pending.add(pool.submit(work, tensor, start, stop))
                if len(pending) > workers:  # a short queue: memory is bounded by what is under way
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        on_bytes(*future.result())
        for future in pending:
            on_bytes(*future.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for data in files:
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


@dataclass(frozen=True)
class _Share:
    """A job that a tensor is a part of, the index of its layout, and the row of the job's where the tensor begins."""

    job: Job
    layout: int
    first_row: int


def _sharers(layouts: Sequence[DataLayout]) -> dict[LazyTensor, list[_Share]]:
    """Who needs each tensor, in the order of the first layout that has it."""
    sharers: dict[LazyTensor, list[_Share]] = {}
    for index, layout in enumerate(layouts):
        for job in layout.jobs:
            for part, first_row in job.tensor.parts():
                sharers.setdefault(part, []).append(_Share(job, index, first_row))
    return sharers


def _reserve_on_disk(file: BinaryIO, size: int) -> None:
    """Claim the blocks now where the system can, so that a full disk shows before the work and not after it."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
