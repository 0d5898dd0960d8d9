"""Where Linux keeps the limits of the container that a process runs in (control groups, versions 1 and 2).

Everything here reads plain files below `root`, so that a test can lay out a board of its own; on another system the files
are not there and there are no limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def folders(controller: str, root: Path) -> Iterator[tuple[int, Path]]:
    """(version, folder) of each control group above this process for "cpu" or "memory", innermost first.

    A container often sees its own group mounted at the top while /proc/self/cgroup names the host's path; the walk up to
    the mount point finds it either way.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":  # "0::/path" is the unified hierarchy of version 2
            version, mounts = 2, [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            version, mounts = 1, [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        mount = next((mount for mount in mounts if mount.is_dir()), None)
        parts = PurePosixPath(group).parts[1:]
        if mount is None or ".." in parts:
            continue
        for depth in range(len(parts), -1, -1):
            folder = mount.joinpath(*parts[:depth])
            if folder.is_dir():
                yield version, folder


def read_number(file: Path) -> int | None:
    """The integer that a file holds; None when there is no file or it holds a word ("max")."""
    try:
        return int(file.read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        return None
