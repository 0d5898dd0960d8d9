"""How many threads a runtime should use when nobody says.

A runtime's own default is the machine's cores, whatever part of them this process may use. Here it is the smallest of

    distinct physical cores in the CPU affinity   two threads of one core share its arithmetic units
    the big ones of a big.LITTLE chip             every step waits for its slowest thread
    the control group's CPU quota                 threads past it are put to sleep in the middle of a step
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from edgellm.runtimes import cgroup

ROOT = Path("/")


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
    capacity = {cpu: cgroup.read_number(_cpu(root, cpu) / "cpu_capacity") for cpu in cpus}
    known = [value for value in capacity.values() if value is not None]
    if len(known) < len(capacity):
        return frozenset(cpus)
    return frozenset(cpu for cpu, value in capacity.items() if value is not None and 2 * value >= max(known))


def physical_cores(cpus: Collection[int], root: Path) -> frozenset[str]:
    """One name per physical core: the CPUs that the kernel lists as its hardware threads."""
    names = set()
    for cpu in cpus:
        try:
            names.add((_cpu(root, cpu) / "topology/thread_siblings_list").read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            names.add(str(cpu))
    return frozenset(names)


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


def _cpu(root: Path, cpu: int) -> Path:
    return root / f"sys/devices/system/cpu/cpu{cpu}"
