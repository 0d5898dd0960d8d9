"""Small files in which Linux says what the machine does (/proc, /sys), below a root folder so that tests can lay out a board.

Whole numbers are read by `runtimes.cgroup.read_number`. A file that is missing, forbidden, unreadable at the moment (a sensor
that sleeps) or full of nonsense is None: no host has all of them.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path("/")
CPUS = "sys/devices/system/cpu"


def text(file: Path) -> str | None:
    """What a file holds, without the white space around it; None where it holds nothing."""
    try:
        return file.read_text(encoding="utf-8").strip(" \t\r\n\0") or None
    except (OSError, ValueError):
        return None


def found(folder: Path, pattern: str) -> list[Path]:
    """What fits a pattern, in the order of the numbers in the names: cpu2 comes before cpu10."""
    return sorted(folder.glob(pattern), key=lambda path: [(len(part), part) for part in re.split(r"(\d+)", str(path))])
