"""A disk to fill."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Callable[[int], Path]:
    """A file system of a few megabytes, where this user may mount one."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        try:
            failed = subprocess.run(command, capture_output=True, check=False).returncode != 0
        except FileNotFoundError:
            failed = True
        if failed:
            pytest.skip("may not mount a file system here")
        mounted.append(folder)
        return folder

    yield mount  # type: ignore[misc]
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)
