"""A folder takes another's name at one stroke, and the one that had it becomes its `.previous`.

Linux (renameat2) and macOS (renamex_np) exchange two names atomically, on most file systems. Elsewhere it takes two renames;
a process that is killed between them leaves nothing under the name for the moment, and `recover`, which every opening of a
bundle calls where there is none, gives it back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgellm.errors import BundleError
from edgellm.partial import IN_USE, alive, works_on

NEW = "new"  # in the work folder: what is to get the name
PATIENCE = 2.0  # seconds in which a living process does the second of two renames
EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h, and RENAME_SWAP of macOS's sys/stdio.h
AT_FDCWD = -100  # of linux/fcntl.h
CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)  # the system or the file system knows no exchange


def previous_of(target: Path) -> Path:
    """Where the folder lies that `target` took the place of."""
    return target.with_name(f"{target.name}.previous")


def identity(path: Path) -> tuple[int, int] | None:
    """Which folder it is that has a name now; None where nothing has."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def put_in_place(new: Path, target: Path) -> None:
    """Give `new` the name `target`, and what is there the name `previous_of(target)`, which must be free.

    Args:
        new: a folder named NEW in a work folder of `partial.make_partial(target, ...)`.

    Raises:
        OSError: it cannot be; then `target` is what it was. So it is where a signal's exception ends this before it is done.
    """
    previous, was = previous_of(target), identity(target)
    try:
        if exchange(new, target):
            new.rename(previous)
        else:
            target.rename(previous)
            new.rename(target)
    except BaseException:  # a signal's comes between any two steps: what is done is seen by who has which name
        if identity(new) == was:
            exchange(new, target)
        elif identity(previous) == was and not os.path.lexists(target):
            previous.rename(target)
        raise
    sync_folder(target.parent)


def trade_places(target: Path, work: Path) -> None:
    """Exchange `target` and `previous_of(target)`.

    Args:
        work: a work folder of `partial.make_partial(target, ...)`; what a kill leaves in it is what was `target`.

    Raises:
        OSError: it cannot be; then `target` is what it was.
    """
    previous = previous_of(target)
    if not exchange(previous, target):
        try:
            target.rename(work / NEW)
            previous.rename(target)
            (work / NEW).rename(previous)
        except BaseException:
            if (work / NEW).is_dir():
                if os.path.lexists(target):
                    target.rename(previous)
                (work / NEW).rename(target)
            raise
    sync_folder(target.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names at one stroke; False where this system or file system cannot.

    Raises:
        OSError: it can, but not these.
    """
    import ctypes  # every opening of a bundle imports this file, and few exchange anything

    if os.name != "posix":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(AT_FDCWD, first, AT_FDCWD, second, EXCHANGE)
    elif hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(first, second, EXCHANGE)
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def recover(target: Path) -> None:
    """Where a swap was killed between two renames, give the previous folder its name back; elsewhere nothing happens.

    A swap that is still going on is waited for. `target` may be a link to what is missing.
    """
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(OSError, ValueError):  # the latter of what is no path at all
        if os.path.exists(target):  # noqa: PTH110 - a link's target counts, and a circle of links is no error
            return
        target = Path(os.path.realpath(target))
        previous = previous_of(target) if target.name else target
        while not os.path.lexists(target) and previous.is_dir():
            works = [(folder, owner) for folder, owner in works_on(target) if (folder / NEW).is_dir()]
            if not works:
                return  # somebody removed it, and only it
            busy = any(folder in IN_USE or alive(owner) for folder, owner in works)
            if not busy or time.monotonic() > deadline:
                previous.rename(target)
            time.sleep(0.01)


@contextlib.contextmanager
def staying(folder: Path) -> Iterator[Callable[[], bool]]:
    """In this block, tell whether a folder's name, or the link that it is, still leads to what it led to at the beginning.

    A rename shows in a folder's ctime, so that one which was exchanged and exchanged back is not taken for one that stayed.
    Nothing is locked: an update neither waits for those who read nor makes them wait.
    """
    recover(folder)
    with contextlib.ExitStack() as held:
        if sys.platform != "win32":
            with contextlib.suppress(
                OSError, ValueError
            ):  # some file systems make up inode numbers, and keep them while it is open
                held.callback(os.close, os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
        before = _state(folder)
        yield lambda: _state(folder) == before


def _state(folder: Path) -> tuple[tuple[int, int, int], ...] | None:
    try:
        seen = (folder.lstat(), folder.stat())
    except (OSError, ValueError):
        return None
    return tuple((each.st_dev, each.st_ino, each.st_ctime_ns) for each in seen)


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """One process at a time may change the folder `target`.

    Raises:
        BundleError: another one is at it.
    """
    if sys.platform == "win32":  # it has no such locks; a folder in use cannot be renamed there anyway
        yield
        return
    import fcntl

    try:
        folder = os.open(target, os.O_RDONLY)
    except OSError as error:
        raise BundleError(f"cannot be read: {error.strerror}", where=target, fix="check its permissions") from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BundleError("another process is changing it", where=target, fix="wait until it is done") from error
        if not os.path.samestat(os.fstat(folder), target.stat()):
            raise BundleError("another process has just changed it", where=target, fix="do it again")
        yield
    finally:
        os.close(folder)


def sync_folder(folder: Path) -> None:
    """Names in a folder reach the disk; not every file system knows that."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
