"""Is the machine quiet? Time that other processes take is time that the engines do not have.

On Linux the kernel's own counts tell (/proc/stat: busy and stolen time of all processors); elsewhere only the load average
does, where there is one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from edgellm.benchmarks.result import Moment

LOAD_LIMIT = 0.5  # load average over a minute, before anything of ours runs
BUSY_LIMIT = 0.1  # processors that others keep busy


def look(seconds: float = 2.0) -> Moment:
    """Watch the machine for a while, doing nothing: the moment before a run."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    before, processes = busy_seconds(), _processes()
    time.sleep(seconds)
    after, now = busy_seconds(), _processes()
    if before is None or after is None:
        return Moment(0.0, load)
    taken = {pid: used - processes.get(pid, (name, 0.0))[1] for pid, (name, used) in now.items()}
    taken.pop(os.getpid(), None)
    pid = max(taken, key=taken.__getitem__, default=None)
    busiest = f"{now[pid][0]} ({pid})" if pid is not None and taken[pid] > 0 else ""
    return Moment(0.0, load, (after - before) / seconds, busiest)


def reasons(seen: Moment) -> tuple[str, ...]:
    """Why the machine was not quiet at a moment at which nothing of ours ran; empty if it was.

    The load average is of the minute before, in which a run of ours may have ended: it counts only where nothing else tells.
    """
    if seen.others is None:
        return () if seen.load is None or seen.load <= LOAD_LIMIT else (f"load average {seen.load:.2f}",)
    if seen.others <= BUSY_LIMIT:
        return ()
    return (f"others keep {seen.others:.2f} processors busy" + (f", most of it {seen.busiest}" * bool(seen.busiest)),)


def busy_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """Seconds that all processors together have worked, or were taken from this machine by its host, since it started."""
    try:
        fields = stat.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        ticks = os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / ticks


def _processes() -> dict[int, tuple[str, float]]:
    """Process id to name and CPU seconds."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = entry.read_text(encoding="utf-8", errors="replace").partition("(")[2].rpartition(")")
        except OSError:
            continue  # it has ended
        fields = rest.split()
        found[int(entry.parent.name)] = name, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found
