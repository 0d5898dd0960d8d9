"""What the machine itself can do: the lines that no engine crosses, measured on as many threads as the engine has.

Both are the best of many short attempts, because whatever disturbs an attempt makes it slower and nothing makes it faster.
Work is handed out in small pieces, so that a slow core does not hold up a fast one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.benchmarks import sysfs
from edgellm.benchmarks.products import PRODUCTS, products
from edgellm.runtimes import memory
from edgellm.runtimes.threads import allowed_cpus, big_cpus

BUFFER = 256 << 20  # bytes, at least; and CACHES times what the caches hold
CACHES = 4
PART = 4  # of the available memory: at most so much of it
PIECE = 4 << 20
Reader = Callable[[NDArray[np.uint64]], object]
# Both let go of Python's lock, and numpy has them in vector instructions. Which one is faster depends on the processor. Dot
# products are no candidate: BLAS starts threads of its own.
READERS: tuple[Reader, ...] = (np.bitwise_or.reduce, np.maximum.reduce)
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

ATTEMPT = 0.02  # seconds of an attempt at products, about
NEAR = 0.7  # ways of multiplying that are slower than this share of the fastest are tried once


def bandwidth(threads: int, seconds: float) -> float:
    """Bytes that so many threads together read from memory in a second, at most.

    They read a buffer several times as large as the caches, so that hardly any of it is found there. Weights that an engine
    reads from 4 KiB pages come slower than this buffer does, which may have large ones: this is the upper limit.

    Args:
        threads: that read at the same time.
        seconds: that are spent, about; filling the buffer comes on top.
    """
    cpus = _cpus(threads)
    buffer = np.full(buffer_bytes(cpus, memory.available_bytes()) // 8, 1, np.uint64)
    pieces = np.array_split(buffer, max(threads, buffer.nbytes // PIECE))
    times: list[float] = []
    with Team(threads, cpus) as team:

        def attempt(read: Reader) -> None:
            times.append(team.time(len(pieces), lambda worker, piece: read(pieces[piece])))

        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            for read in READERS:
                attempt(read)
    return buffer.nbytes / min(times)


def int8_products(threads: int, seconds: float) -> float | None:
    """Multiply-adds of 8-bit integers that so many threads together do in a second, at most; None without a way to do them.

    It is measured with the large matrix products of the runtimes that are installed, the fastest of them, each thread running
    its own. They choose the instructions (VNNI, dotprod, i8mm, AMX) and keep the registers full: on AVX-512 VNNI they reach
    more than 0.9 of what a bare loop of that instruction does. A table of products per cycle would need the clock that the
    machine really has, which a virtual machine does not tell and a processor that boosts changes; a figure too low would
    call honest runs failed. Whatever an engine does in a prompt besides large products makes it slower than this.

    Args:
        threads: that multiply at the same time.
        seconds: that are spent, about; preparing the products comes on top.
    """
    cpus = _cpus(threads)
    best: dict[int, float] = {}
    ways = [[make() for _ in range(threads)] for make in products()]
    with Team(threads, cpus) as team:

        def attempt(way: int, pieces: int) -> None:
            spent = team.time(pieces, lambda worker, piece: ways[way][worker]())
            best[way] = min(best.get(way, spent), spent / pieces)

        for way in range(len(ways)):
            attempt(way, threads)  # the first run allocates
            attempt(way, threads)
        if not best:
            return None
        near = [way for way, spent in best.items() if spent * NEAR <= min(best.values())]
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for way in near:
                attempt(way, max(4 * threads, round(ATTEMPT / best[way])))
    return PRODUCTS / min(best.values())


def buffer_bytes(cpus: Collection[int], available: int | None, root: Path = sysfs.ROOT) -> int:
    """How large a buffer is that these CPUs' caches do not hold, a whole number of 8 bytes.

    Args:
        available: bytes of memory, of which a part is used; None where nobody knows.
    """
    wanted = max(BUFFER, CACHES * last_level_bytes(cpus, root))
    return (wanted if available is None else min(wanted, max(PIECE, available // PART))) // 8 * 8


def last_level_bytes(cpus: Collection[int], root: Path = sysfs.ROOT) -> int:
    """Bytes of the last level of cache that these CPUs have, all of them together; 0 where the kernel does not tell."""
    sizes: dict[str, int] = {}
    for cpu in cpus:
        levels = sysfs.found(root / f"{sysfs.CPUS}/cpu{cpu}/cache", "index*")
        size = sysfs.text(levels[-1] / "size") if levels else None
        if size is not None and size[:-1].isdigit() and size[-1] in UNITS:
            sizes[sysfs.text(levels[-1] / "shared_cpu_list") or str(cpu)] = int(size[:-1]) * UNITS[size[-1]]
    return sum(sizes.values())


def _cpus(threads: int) -> frozenset[int]:
    """Where the threads may run: on the big cores of those that this process may use, where these are enough."""
    allowed = allowed_cpus()
    big = big_cpus(allowed, sysfs.ROOT)
    return big if len(big) >= threads else allowed


class Team:
    """Threads that start together and share pieces of work; they keep to the given CPUs, and end with the block."""

    def __init__(self, threads: int, cpus: Collection[int]) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, initializer=_keep_to, initargs=(cpus,))

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def time(self, pieces: int, work: Callable[[int, int], object]) -> float:
        """Seconds from when all are ready until the last piece is done; `work` is told the thread's number and the piece's."""
        starts: list[float] = []
        ready = threading.Barrier(self._threads, action=lambda: starts.append(time.perf_counter()))
        left = iter(range(pieces))

        def run(worker: int) -> float:
            ready.wait()
            for piece in left:
                work(worker, piece)
            return time.perf_counter()

        ends: Sequence[float] = list(self._pool.map(run, range(self._threads)))
        return max(ends) - starts[0]


def _keep_to(cpus: Collection[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it, and then the kernel chooses
            os.sched_setaffinity(0, cpus)  # of this thread alone
