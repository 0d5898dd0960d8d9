"""Paths that may be anything: names that were read from a manifest or an update, and what a user typed."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from edgellm.errors import BundleError

MAX_DEPTH = 16  # folders and file; what is deeper by far cannot be removed again by everything that walks a tree
MAX_BYTES = 1024  # of a whole name: with the folder's own it stays below what systems take


def check_name(name: str, where: Path) -> None:
    """Refuse a file's name, read from `where`, that could lead out of the folder, or that a file system cannot have.

    Raises:
        BundleError: it is not a plain relative path, or longer than any that a bundle needs.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name or name != path.as_posix():
        raise BundleError(f"'{name[:MAX_BYTES]!r}' is not a plain relative path", where=where, fix="do not use it")
    try:
        name.encode()  # a lone surrogate passes the other one, as a byte of no character
        size = len(os.fsencode(name))
    except UnicodeEncodeError as error:
        raise BundleError(f"'{name[:MAX_BYTES]!r}' is not a name of a file", where=where, fix="do not use it") from error
    if len(path.parts) > MAX_DEPTH or size > MAX_BYTES:
        what = f"'{name[:60]!r}...' is longer than {MAX_BYTES} bytes or deeper than {MAX_DEPTH} folders"
        raise BundleError(what, where=where, fix="do not use it")


def exists(path: Path) -> bool:
    """Whether there is something, if only behind a locked door; False, too, for what is too long for a path."""
    try:
        return path.exists()
    except PermissionError:
        return True
    except OSError:
        return False
