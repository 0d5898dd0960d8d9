"""How many threads a runtime should use when nobody says.

A runtime's own default is the machine's cores, whatever part of them this process may use. Here it is the smallest of

    distinct physical cores in the CPU affinity   two threads of one core share its arithmetic units
    the big ones of a big.LITTLE chip             every step waits for its slowest thread
    the control group's CPU quota                 threads past it are put to sleep in the middle of a step
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgellm.runtimes import cgroup

ROOT = Path("/")


@dataclass(frozen=True)
class Topology:
    """What there is for threads to run on.

    Attributes:
        cores: of each CPU that this process may use, the physical core that it is a hardware thread of.
        capacity: of each of them, as the kernel tells it; empty where it does not tell of all.
        quota: CPUs' worth of time that the control groups allow; None without a limit.
        threads: that suit, as far as all this tells.
    """

    cores: Mapping[int, str]
    capacity: Mapping[int, int]
    quota: float | None
    threads: int


def topology(cpus: Collection[int] | None = None, root: Path = ROOT) -> Topology:
    """The machine whose /proc and /sys lie below `root`, for a process that may use `cpus`; None is this process."""
    cpus = sorted(allowed_cpus() if cpus is None else cpus)
    return Topology({cpu: _core(cpu, root) for cpu in cpus}, _capacities(cpus, root), cpu_quota(root), threads_for(cpus, root))


@contextlib.contextmanager
def pinned(cpus: Collection[int]) -> Iterator[None]:
    """Threads that the block makes run on `cpus` only; the calling thread is as before when it ends.

    A thread starts with the affinity of the one that made it. Without CPUs, on a system without affinity, and where the
    system refuses them, nothing changes.
    """
    if not cpus or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        with contextlib.suppress(OSError):  # a CPU went offline, or the container may not use it any more
            os.sched_setaffinity(0, cpus)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)


def default_threads() -> int:
    """Threads that suit this process on this machine; at least 1. Linux has all the facts, other systems the core count."""
    return threads_for(allowed_cpus(), ROOT)


def allowed_cpus() -> frozenset[int]:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def threads_for(cpus: Collection[int], root: Path) -> int:
    """Threads for a process that may use `cpus`, on the machine whose /proc and /sys lie below `root`."""
    cores = len(physical_cores(big_cpus(cpus, root), root))
    quota = cpu_quota(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def big_cpus(cpus: Collection[int], root: Path) -> frozenset[int]:
    """Those CPUs with at least half the capacity of the strongest; all of them where the kernel does not tell."""
    capacity = _capacities(cpus, root)
    return frozenset(cpu for cpu in cpus if not capacity or 2 * capacity[cpu] >= max(capacity.values()))


def physical_cores(cpus: Collection[int], root: Path) -> frozenset[str]:
    """One name per physical core: the CPUs that the kernel lists as its hardware threads."""
    return frozenset(_core(cpu, root) for cpu in cpus)


def cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time that the control groups allow (2.5 is two and a half); None without a limit."""
    quotas = []
    for version, folder in cgroup.folders("cpu", root):
        if version == 2:
            try:
                fields = (folder / "cpu.max").read_text(encoding="ascii").split()
            except (OSError, ValueError):
                continue
            if len(fields) == 2 and all(field.isdigit() for field in fields) and int(fields[1]) > 0:
                quotas.append(int(fields[0]) / int(fields[1]))
        else:
            quota = cgroup.read_number(folder / "cpu.cfs_quota_us")
            period = cgroup.read_number(folder / "cpu.cfs_period_us")
            if quota is not None and quota > 0 and period:
                quotas.append(quota / period)
    return min(quotas, default=None)


def _capacities(cpus: Collection[int], root: Path) -> dict[int, int]:
    """By CPU; empty where the kernel does not tell of all."""
    found = {cpu: cgroup.read_number(_cpu(root, cpu) / "cpu_capacity") for cpu in cpus}
    known = {cpu: value for cpu, value in found.items() if value is not None}
    return known if len(known) == len(found) else {}


def _core(cpu: int, root: Path) -> str:
    try:
        return (_cpu(root, cpu) / "topology/thread_siblings_list").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return str(cpu)


def _cpu(root: Path, cpu: int) -> Path:
    return root / f"sys/devices/system/cpu/cpu{cpu}"
