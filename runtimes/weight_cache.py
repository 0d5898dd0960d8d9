"""Packed weights between loads: a runtime that repacks weights for its kernels writes them to a file once, and maps it later.

The file lies in the user's cache folder, named after everything that it depends on: the graph's sha256, the runtime's version,
the processor. It gets that name when it is complete, so two processes that start at once each make their own and the last
one's stays. What was changed since is not used: a record beside it holds its sha256, and size and time by which a whole hash is
spared as long as they are the same.

A runtime runs what is in the file as it is, so the folder has to be this user's, and nobody else may write to it. Where that is
not enough, because a signature has to cover every byte that is run, a load does without: `without_packed_weights`.

All files together stay under a cap: those unused for the longest time go, but neither the one that was just made nor one that
a load is about to open (it holds a lock on the record). What is mapped already may go: its pages stay until they are unmapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from edgellm.bundle import cache_dir, sha256_file
from edgellm.runtimes.processor import processor

CAP = 8 << 30  # bytes of all files together
RECORD, MAKING = ".json", ".making-"
ABANDONED = 3600  # seconds after which nobody is at work on it any more

logger = logging.getLogger(__name__)
_without: ContextVar[bool] = ContextVar("without_packed_weights", default=False)


@contextlib.contextmanager
def without_packed_weights() -> Iterator[None]:
    """In this block loads neither take what earlier ones left nor leave anything: weights come from the bundle alone."""
    token = _without.set(True)
    try:
        yield
    finally:
        _without.reset(token)


@contextlib.contextmanager
def packed_weights(*parts: str) -> Iterator[Path | None]:
    """The file for a load: the one that an earlier load left, else a new name, which is kept if the block ends well.

    Args:
        parts: what the packed weights depend on, apart from the processor.

    Yields:
        a path; None where no file can be written or none is to be trusted, and the runtime has to keep its weights in memory.
    """
    folder = cache_dir() / "packed"
    if _without.get() or not _is_own(folder):
        yield None
        return
    final = folder / hashlib.sha256("\n".join([*parts, processor()]).encode()).hexdigest()
    with contextlib.ExitStack() as lock:
        if _hold(final, lock):
            yield final
            return
    try:
        scratch = Path(tempfile.mkdtemp(prefix=MAKING, dir=folder))
    except OSError as error:
        logger.debug("no cache of packed weights: %s", error)
        yield None
        return
    try:
        yield scratch / "weights"  # what fails in the block is the caller's; nothing is kept then
        try:
            _keep(scratch / "weights", final)
            _evict(folder, final)
        except OSError as error:  # a full disk, or no file was made: the load itself went well
            logger.debug("packed weights are not kept: %s", error)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_own(folder: Path) -> bool:
    """Whether the folder is there, if need be made now, and nobody but this user and root can change what lies in it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sys.platform == "win32":  # it keeps the folders of users apart by other means
            return True
        within, above = folder.stat(), folder.parent.stat()
    except OSError as error:
        logger.debug("no cache of packed weights: %s", error)
        return False
    alone = within.st_uid == os.geteuid() and not within.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # in a folder such as /tmp, where all may write, nobody takes away another one's
    kept = above.st_uid in (0, os.geteuid()) and (not above.st_mode & stat.S_IWOTH or bool(above.st_mode & stat.S_ISVTX))
    if not (alone and kept):
        logger.warning(
            "packed weights are not kept: %s is another user's, or others may write to it; set EDGELLM_CACHE", folder
        )
    return alone and kept


def _keep(made: Path, final: Path) -> None:
    """Record first, then the name: a file without its record is not used."""
    status = made.stat()
    record = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256_file(made)}
    note = made.with_name("record")
    note.write_text(json.dumps(record), encoding="utf-8")
    note.replace(final.with_suffix(RECORD))
    made.replace(final)


def _is_whole(file: Path) -> bool:
    """Whether the file is as it was when it was kept."""
    try:
        record = json.loads(file.with_suffix(RECORD).read_text(encoding="utf-8"))
        status = file.stat()
        if (status.st_size, status.st_mtime_ns) == (record["size"], record["mtime_ns"]):
            return True
        return bool(status.st_size == record["size"] and sha256_file(file) == record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _hold(file: Path, lock: contextlib.ExitStack) -> bool:
    """Whether the file is as it was when it was kept; then it counts as used last, and stays as long as the lock is held."""
    record = file.with_suffix(RECORD)
    try:
        lock.enter_context(_locked(record, alone=False))
    except OSError:
        return False
    if not _is_whole(file):  # looked at under the lock: it may have been evicted before
        return False
    with contextlib.suppress(OSError):
        os.utime(record)
    return True


def _evict(folder: Path, newest: Path) -> None:
    """Remove what killed processes left, and the files unused for the longest time until the rest is under the cap."""
    for scratch in folder.glob(f"{MAKING}*"):
        if scratch.stat().st_mtime < time.time() - ABANDONED:
            shutil.rmtree(scratch, ignore_errors=True)
    for file in folder.iterdir():
        if file.is_file() and not file.suffix and not file.with_suffix(RECORD).exists():
            file.unlink(missing_ok=True)  # an eviction that was killed half-way
    records = sorted(folder.glob(f"*{RECORD}"), key=lambda path: path.stat().st_mtime)
    sizes = {record: file.stat().st_size if (file := record.with_suffix("")).exists() else 0 for record in records}
    total = sum(sizes.values())
    for record, size in sizes.items():
        if total <= CAP:
            break
        if record.with_suffix("") != newest and _remove(record):
            total -= size


def _remove(record: Path) -> bool:
    """Remove a file and its record; False where a load is about to open it, or the system does not let go of it."""
    try:
        with _locked(record, alone=True) as alone:
            if alone:
                record.unlink(missing_ok=True)
                record.with_suffix("").unlink(missing_ok=True)
            return alone
    except OSError:
        return False


@contextlib.contextmanager
def _locked(record: Path, *, alone: bool) -> Iterator[bool]:
    """Hold a record together with other loads, or alone: then False if there are others.

    Where the system or the file system has no such locks, everybody is let in.
    """
    if sys.platform == "win32":
        yield True
        return
    import fcntl

    with record.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
