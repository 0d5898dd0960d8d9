"""Files that are mapped into memory: what was read of them need not stay in this process."""

from __future__ import annotations

import mmap

LEAST = 1 << 18  # bytes below which it is not worth a call


def forget(mapped: mmap.mmap, start: int, stop: int) -> None:
    """Let go of the bytes from `start` to `stop`. The system's cache of the file keeps them: read again, they are mapped again.

    A model would otherwise end up in this process's memory whole, and count against whatever limits that.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)  # Windows has none
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if advice is not None and last - first >= LEAST:
        mapped.madvise(advice, first, last - first)
