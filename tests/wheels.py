"""The wheel that this checkout makes, built from a copy so that nothing is left in it."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Of the C library, newest first: pip takes a list and does not know that a later one runs what was built for an earlier one.
GLIBC = (*range(36, 16, -1), 12, 5)


def build(folder: Path) -> Path:
    """Build it into `folder`."""
    copy = folder / "checkout"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "demo", "build", "tests", "node_modules", "*.egg-info")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=left_out)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(copy)
    (wheel,) = folder.glob("edgellm-*.whl")
    return wheel


def unpack(wheel: Path, folder: Path) -> Path:
    """What pip puts into site-packages of a wheel that is all Python."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def pip(machine: str, python: str) -> list[str]:
    """The start of an install command for another machine ("aarch64") and Python ("3.12"): wheels only."""
    tags = [f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC] + [f"--platform=manylinux2014_{machine}"]
    versions = ["--implementation=cp", f"--python-version={python}", "--only-binary=:all:"]
    return [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", *versions, *tags]


@functools.cache
def unreachable() -> str | None:
    """Why pip has no index, by a wheel that suits every machine; None where it has one, and who finds nothing asked wrongly."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--dest", folder, "jinja2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    return f"no package index: {done.stderr.strip()}" if done.returncode else None


def requirements(wheel: Path) -> list[str]:
    """What its metadata says that it needs, a line each."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))).decode()
    return sorted(line for line in metadata.splitlines() if line.startswith("Requires-Dist: "))
