"""What machine this is: the part of a report without which its figures mean nothing."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgellm.benchmarks import emulation, sysfs

# What int8 and 4-bit kernels look for, by the names that Linux (/proc/cpuinfo) and macOS (sysctl) give them.
FEATURES = {
    "avx2": "avx2",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "amx_int8": "amx_int8",
    "neon": "neon",
    "asimd": "neon",
    "asimddp": "dotprod",
    "feat_dotprod": "dotprod",
    "i8mm": "i8mm",
    "feat_i8mm": "i8mm",
    "sve": "sve",
    "bf16": "bf16",
    "fphp": "fp16",
}
MODEL = "proc/device-tree/model"  # of boards; it ends with a NUL
FAST_INT8 = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "dotprod", "i8mm"})


@dataclass(frozen=True)
class Machine:
    """A machine as a report names it.

    Attributes:
        cpu: the processor's name, as far as the system tells.
        features: instruction sets that matter for 4- and 8-bit kernels; None where the system does not tell (Windows).
        cores: logical processors, before any affinity or quota.
        memory: bytes of RAM, or None where the system does not tell.
        emulated: why this is no real machine, in a clause; its times are no results.
        model: the board or device, as it calls itself.
    """

    system: str
    architecture: str
    cpu: str
    features: tuple[str, ...] | None
    cores: int
    memory: int | None
    python: str
    emulated: str | None = None
    model: str | None = None


def machine() -> Machine:
    """This machine."""
    cpuinfo = _read("/proc/cpuinfo")
    if sys.platform == "darwin":
        cpu = _sysctl("machdep.cpu.brand_string")
        flags = _sysctl("machdep.cpu.features", "machdep.cpu.leaf7_features")
        arm = [name for name in ("FEAT_DotProd", "FEAT_I8MM") if _sysctl(f"hw.optional.arm.{name}") == "1"]
        features: tuple[str, ...] | None = known_features(" ".join([flags, *arm]))
    else:
        cpu = _field(cpuinfo, "model name", "Model", "Hardware")
        features = known_features(_field(cpuinfo, "flags", "Features")) if cpuinfo else None
    return Machine(
        system=platform.platform(),
        architecture=platform.machine(),
        cpu=cpu or platform.processor() or "unknown",
        features=features,
        cores=os.cpu_count() or 1,
        memory=_memory(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        emulated=emulation.emulated(platform.machine()),
        model=sysfs.text(sysfs.ROOT / MODEL),
    )


def known_features(flags: str) -> tuple[str, ...]:
    """The features of FEATURES among the flags that a system lists, sorted."""
    return tuple(sorted({FEATURES[flag] for flag in flags.lower().split() if flag in FEATURES}))


def peak_rss() -> int | None:
    """Peak resident bytes of this process so far; None where the system does not tell (Windows)."""
    status = _field(_read("/proc/self/status"), "VmHWM")
    if status:  # Linux: getrusage would answer for the process that this one was forked from too
        return int(status.split()[0]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> bool:
    """Let `peak_rss` begin anew from what is resident now; whether the system can (Linux: proc(5), clear_refs)."""
    try:
        with Path("/proc/self/clear_refs").open("w", encoding="ascii") as file:  # which is not made where there is none
            file.write("5")
    except OSError:
        return False
    return True


def pss() -> int | None:
    """Proportional set size of this process in bytes: a page that n processes share counts as an n-th; None but on Linux."""
    share = _field(_read("/proc/self/smaps_rollup"), "Pss")
    return int(share.split()[0]) * 1024 if share else None


def forget_files(files: Iterable[Path]) -> None:
    """Drive files out of the page cache, where the system offers that (Linux); what is mapped elsewhere stays."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in files:
        with contextlib.suppress(OSError), file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes() -> int | None:
    """Bytes that storage had to deliver to this process so far; None where the system does not tell (not Linux)."""
    count = _field(_read("/proc/self/io"), "read_bytes")
    return int(count) if count else None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return None


def _field(text: str, *names: str) -> str:
    """The first `name : value` of /proc/cpuinfo among the names, in their order."""
    for name in names:
        for line in text.splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl(*names: str) -> str:
    done = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, check=False)
    return " ".join(done.stdout.split())
