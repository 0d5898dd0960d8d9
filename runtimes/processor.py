"""What processor this is, as far as kernels and their speed depend on it."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The architecture, and the name and the features where the system lists them (Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = (next((line for line in lines if line.startswith(keys)), "") for keys in ("model name", ("flags", "Features")))
    return " ".join([platform.machine(), *told])
