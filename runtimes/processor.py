"""What processor this is, as far as kernels and their speed depend on it."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """The architecture, and the name and the features where the system lists them (Linux)."""
    lines = _lines(CPUINFO)
    told = (next((line for line in lines if line.startswith(keys)), "") for keys in ("model name", ("flags", "Features")))
    return " ".join([platform.machine(), *told])


def lacks_atomics(architecture: str | None = None, cpuinfo: Path = CPUINFO) -> bool:
    """Whether this is a 64-bit ARM without the atomic instructions of ARMv8.1; False where the system does not tell.

    Cortex-A53 and A72 are: the Raspberry Pi 3 and 4.
    """
    features = [line.partition(":")[2].split() for line in _lines(cpuinfo) if line.startswith("Features")]
    return (architecture or platform.machine()) == "aarch64" and any("atomics" not in each for each in features)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
