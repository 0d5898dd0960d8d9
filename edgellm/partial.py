"""Things that appear whole or not at all: made in a hidden folder beside the target, and named when they are complete.

`option` is the argument that named the target, as the user knows it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path

from edgellm.errors import BundleError, EdgeError, ResourceError

IN_USE: set[Path] = set()  # partial folders of this process
SPARE = 64 << 20  # what is left free on the disk beside a new target


def free_target(target: Path, option: str) -> Path:
    """The target's full path.

    Raises:
        BundleError: there is something, or it is no path.
    """
    target = Path.cwd() / target
    try:
        target.lstat()
    except FileNotFoundError:
        return target
    except (OSError, ValueError) as error:  # below a file, too long, or no path at all
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"cannot write: {reason}", where=target, fix=f"choose another {option}") from error
    raise BundleError("the target exists already", where=target, fix=f"remove it or choose another {option}")


def make_partial(target: Path, option: str) -> Path:
    """A hidden folder beside the target; what killed processes left behind for the same target is cleared away.

    Raises:
        BundleError: it cannot be made.
    """
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left, owner in works_on(target):
            if left not in IN_USE and not alive(owner):
                _remove(left)
        partial.mkdir()
        IN_USE.add(partial)
    except FileExistsError as error:
        raise BundleError("another thread is writing it", where=target, fix=f"wait, or choose another {option}") from error
    except OSError as error:
        raise write_error(error, target, option) from error
    return partial


def works_on(target: Path) -> list[tuple[Path, int]]:
    """The partial folders beside a target, and the number of the process that made each."""
    found = [(left, left.name.rpartition("-")[2]) for left in target.parent.glob(f".{_escape_glob(target.name)}.partial-*")]
    return [(left, int(owner)) for left, owner in found if owner.isascii() and owner.isdigit()]


def remove_partial(partial: Path) -> None:
    """Remove what is left of a partial folder."""
    try:
        _remove(partial)
    finally:
        leave_partial(partial)


def leave_partial(partial: Path) -> None:
    """Leave a partial folder as a kill would: the next `make_partial` clears it away."""
    IN_USE.discard(partial)


def _remove(folder: Path) -> None:
    """As far as it can be: a tree of a thousand folders, which Python walks by calling itself, stops nothing that follows."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)


def check_disk(target: Path, size: int, what: str, option: str) -> None:
    """Refuse before the work what the disk has no room for.

    Raises:
        ResourceError: fewer than `size` bytes and some to spare are free.
    """
    parent = next(folder for folder in target.parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < size + SPARE:
        raise ResourceError(
            f"{what} needs {(size + SPARE) >> 20} MB and {free >> 20} MB are free",
            where=parent,
            fix=f"make room or choose another {option}",
        )


def write_error(error: OSError, target: Path, option: str) -> EdgeError:
    """What a system's error means to whoever named the target."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = f"make room or choose another {option}; nothing was left behind"
        return ResourceError("the disk is full", where=target, fix=fix)
    reason = error.strerror or str(error)
    return BundleError(f"cannot write: {reason}", where=target, fix="check the path and its permissions")


def give_name(file: Path, target: Path, option: str) -> None:
    """Let a complete file appear as `target`; unlike a rename, this never replaces one that appeared meanwhile.

    Raises:
        BundleError: there is something now.
    """
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
    try:
        os.link(file, target)
    except FileExistsError as error:
        raise BundleError("the target appeared meanwhile", where=target, fix=f"choose another {option}") from error
    except OSError:  # a file system without links
        free_target(target, option)
        file.rename(target)


def remove_parents(made: list[Path]) -> None:
    """Remove the folders that were made for a target, as far as they are empty."""
    with contextlib.suppress(OSError):  # the target lies in them, if all went well
        for parent in made:
            parent.rmdir()


def _escape_glob(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def alive(pid: int) -> bool:
    """Whether another process of this number runs; True where the system cannot tell."""
    if os.name != "posix":
        return True  # elsewhere signal 0 is no harmless question
    if pid == os.getpid():
        return False  # an earlier attempt of this very process: it has ended
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # somebody else's process, or a system that cannot tell
    return True
