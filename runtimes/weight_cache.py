"""Packed weights between loads: a runtime that repacks weights for its kernels writes them to a file once, and maps it later.

The file lies in the user's cache folder, named after everything that it depends on: the graph's sha256, the runtime's version,
the processor's features. It gets that name when it is complete, so two processes that start at once each make their own and
the last one's stays. What was changed since is not used: a record beside it holds its sha256, and size and time by which
a whole hash is spared as long as they are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from edgellm.bundle import cache_dir, sha256_file

CAP = 8 << 30  # bytes of all files together
RECORD, MAKING = ".json", ".making-"
ABANDONED = 3600  # seconds after which nobody is at work on it any more

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def packed_weights(*parts: str) -> Iterator[Path | None]:
    """The file for a load: the one that an earlier load left, else a new name, which is kept if the block ends well.

    Args:
        parts: what the packed weights depend on, apart from the processor.

    Yields:
        a path; None where no file can be written, and the runtime has to keep its weights in memory.
    """
    folder = cache_dir() / "packed"
    final = folder / hashlib.sha256("\n".join([*parts, _processor()]).encode()).hexdigest()
    if _is_whole(final):
        with contextlib.suppress(OSError):
            os.utime(final.with_suffix(RECORD))  # used last
        yield final
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
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


def _evict(folder: Path, newest: Path) -> None:
    """Remove what killed loads left, and the files unused for the longest time until the rest is under the cap."""
    for scratch in folder.glob(f"{MAKING}*"):
        if scratch.stat().st_mtime < time.time() - ABANDONED:
            shutil.rmtree(scratch, ignore_errors=True)
    records = sorted(folder.glob(f"*{RECORD}"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for record in records:
        file = record.with_suffix("")
        total += file.stat().st_size if file.exists() else 0
        if total > CAP and file != newest:
            record.unlink(missing_ok=True)
            file.unlink(missing_ok=True)


def _processor() -> str:
    """What kernels are chosen by: the architecture, and the features where the system lists them (Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {features}"
