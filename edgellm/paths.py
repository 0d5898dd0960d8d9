"""Names of files that were read from a manifest or an update, and are not trusted."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from edgellm.errors import BundleError


def check_name(name: str, where: Path) -> None:
    """Refuse a file's name, read from `where`, that could lead out of the folder.

    Raises:
        BundleError: it is not a plain relative path.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name or name != path.as_posix():
        raise BundleError(f"'{name!r}' is not a plain relative path", where=where, fix="do not use it")
