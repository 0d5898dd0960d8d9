"""What the machine was like while something was measured, and what that says against the figures.

    counts = throttle_counts()
    before = moment(0.0, cpus, since=counts)
    ...
    doubts([before, after], samples, machine())

Linux tells most of it in /proc and /sys, each part on some hosts only: what is not told is None, and speaks against nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgellm.benchmarks import emulation, sysfs
from edgellm.benchmarks.machine import Machine
from edgellm.benchmarks.peers import quiet
from edgellm.benchmarks.result import Case, Moment, Sample
from edgellm.runtimes.cgroup import read_number

LOOK = 2.0  # seconds
LOWEST, HIGHEST = -40.0, 150.0  # degrees: what is beyond is no temperature
SLOWER = 0.9  # of the clock there was, or may be
DISTURBED = 0.1  # of the samples of all cases
DISTURBED_CASE = 0.25  # of one case's: two of five rounds move a median, one does not
TICKS = 0.1  # CPU seconds: the kernel counts others in hundredths, too coarse for a share of a short sample

STEADY = ("performance", "schedutil")
# Drivers whose processor chooses its clock by itself: "powersave" is a hint to it there and does not hold the clock down.
# Where the same hardware is driven by the kernel, the drivers are called intel_cpufreq and amd-pstate.
AUTONOMOUS = ("intel_pstate", "amd-pstate-epp")

PI_MASK = "sys/devices/platform/soc/soc:firmware/get_throttled"
PI_BITS = ("its voltage is too low", "its clock is held down", "it throttles", "it is near its temperature limit")
PI_PAST = 16  # bits: as far above each of them is one for "since the machine started"


def moment(
    at: float,
    cpus: Collection[int],
    root: Path = sysfs.ROOT,
    seconds: float = LOOK,
    since: Mapping[str, int] | None = None,
) -> Moment:
    """The machine now.

    Args:
        at: seconds from the run's start, to be noted.
        cpus: the processors whose clock and governor count.
        seconds: for which it is watched, doing nothing, to see what others do; with 0 nobody knows.
        since: `throttle_counts` of an earlier moment; what has been counted since then is throttling.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    seen = quiet.look(seconds) if seconds > 0 else Moment(at, load)
    counts = throttle_counts(root)
    counted = [
        f"{name} went from {(since or counts)[name]} to {count}"
        for name, count in counts.items()
        if count != (since or counts).get(name, count)
    ]
    limits = _numbers(cpus, root, "scaling_max_freq") or _numbers(cpus, root, "cpuinfo_max_freq")
    return Moment(
        at=at,
        load=seen.load,
        others=seen.others,
        busiest=seen.busiest,
        celsius=celsius(root),
        mhz=mhz(cpus, root),
        mhz_limit=statistics.mean(limits) / 1000 if limits else None,
        governor="/".join(sorted(set(_texts(cpus, root, "scaling_governor")))) or None,
        throttled=(*_cooled(root), *_pi(root), *counted),
    )


def celsius(root: Path = sysfs.ROOT) -> float | None:
    """The hottest of the thermal zones and hwmon sensors, in degrees; None where there is none."""
    files = (*(root / "sys/class/thermal").glob("thermal_zone*/temp"), *(root / "sys/class/hwmon").glob("hwmon*/temp*_input"))
    degrees = [value / 1000 for value in map(read_number, files) if value is not None]
    return max((value for value in degrees if LOWEST < value < HIGHEST), default=None)


def mhz(cpus: Collection[int], root: Path = sysfs.ROOT) -> float | None:
    """Mean clock of the processors, as cpufreq tells or /proc/cpuinfo; None where neither does."""
    told = _numbers(cpus, root, "scaling_cur_freq")
    if told:
        return statistics.mean(told) / 1000
    clocks: list[float] = []
    cpu = None
    for line in (sysfs.text(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "processor":
            cpu = int(value) if value.isdigit() else None
        elif name == "cpu MHz" and cpu in cpus and value.replace(".", "", 1).isdigit():
            clocks.append(float(value))
    return statistics.mean(clocks) if clocks else None


def throttle_counts(root: Path = sysfs.ROOT) -> dict[str, int]:
    """What the machine has counted of throttling since it started, by name; for `moment` to compare with."""
    counts: dict[str, int] = {}
    for kind in ("core", "package"):
        files = (root / sysfs.CPUS).glob(f"cpu[0-9]*/thermal_throttle/{kind}_throttle_count")
        found = [count for count in map(read_number, files) if count is not None]
        if found:
            counts[f"{kind}_throttle_count"] = sum(found)
    mask = _pi_mask(root)
    if mask is not None:
        counts["what get_throttled remembers"] = mask >> PI_PAST
    return counts


def doubts(moments: Sequence[Moment], samples: Sequence[Sample], machine: Machine, root: Path = sysfs.ROOT) -> tuple[str, ...]:
    """What speaks against the figures of a run, each a sentence that says what to do about it; empty if nothing does.

    A virtual machine is none of it: `emulation.virtual` tells of it, for the notes.

    Args:
        moments: in the order of time; the first one is from before the run, so that its load is not our own.
        samples: warm-ups are of no account.
        root: of the machine that measured, for what the moments do not say.
    """
    counted = [sample for sample in samples if sample.round > 0]
    found = [f"{machine.emulated}: measure on the hardware itself"] if machine.emulated else []
    found += [
        *_not_quiet(moments, counted),
        *_governors(moments, root),
        *_throttled(moments),
        *_slowed(moments, samples, machine),
    ]
    tracer = next((line.split()[1] for line in _status(root) if line.startswith("TracerPid:")), "0")
    if tracer != "0":
        found.append(f"a debugger (process {tracer}) follows this process: measure without it")
    return tuple(found)


def _not_quiet(moments: Sequence[Moment], samples: Sequence[Sample]) -> Iterator[str]:
    end = "end what else runs and measure again"
    for before in moments[:1]:
        reasons = quiet.reasons(before)
        if reasons:
            yield f"the machine was not quiet before the run ({', '.join(reasons)}): {end}"
    later = [replace(each, load=None) for each in moments[1:]]  # that is our own by now
    worst = max(later, key=lambda each: each.others or 0.0, default=None)
    if worst is not None and quiet.reasons(worst):
        yield f"the machine was not quiet between the cases ({', '.join(quiet.reasons(worst))}): {end}"
    busy = disturbed(samples)
    if busy is not None:
        yield f"{busy}: {end}"


def disturbed(samples: Sequence[Sample]) -> str | None:
    """How many of the samples others may have slowed down; None where it is few of all, and of each lane's case.

    A sample that is too short to tell is none of them, and neither is a window of a sustained run, of which there are so many.
    """
    cases: dict[tuple[str, Case], list[float]] = {}
    for sample in samples:
        if sample.others is not None and sample.case.kind != "sustained" and sample.seconds > TICKS:
            found = sample.others > quiet.BUSY_LIMIT and sample.others * sample.seconds > TICKS
            cases.setdefault((sample.lane, sample.case), []).append(sample.others if found else 0.0)
    every = [others for values in cases.values() for others in values]
    count = sum(map(bool, every))
    if count > DISTURBED * len(every):
        return f"others kept up to {max(every):.2f} processors busy during {count} of {len(every)} samples"
    for (_, case), values in cases.items():
        count = sum(map(bool, values))
        if count > DISTURBED_CASE * len(values):
            return f"others kept up to {max(values):.2f} processors busy during {count} of {len(values)} samples of {case.name}"
    return None


def _governors(moments: Sequence[Moment], root: Path) -> Iterator[str]:
    found = {governor for each in moments for governor in (each.governor or "").split("/") if governor}
    drivers = {sysfs.text(file) for file in (root / sysfs.CPUS).glob("cpu[0-9]*/cpufreq/scaling_driver")}
    if drivers and drivers <= set(AUTONOMOUS):
        found.discard("powersave")
    for governor in sorted(found - set(STEADY)):
        fix = "set it to performance (cpupower frequency-set -g performance) and measure again"
        yield f"the governor {governor} may hold the clock back: {fix}"


def _throttled(moments: Sequence[Moment]) -> Iterator[str]:
    # of one device, what the last moment says of it
    reasons = {re.split(" (?:is at|went from) ", reason)[0]: reason for each in moments for reason in each.throttled}
    if reasons:
        yield f"the machine throttled ({'; '.join(reasons.values())}): cool it or feed it better, and measure again"


def _slowed(moments: Sequence[Moment], samples: Sequence[Sample], machine: Machine) -> Iterator[str]:
    """By each lane's own beginning: with more threads, the clock of all of them may be lower without any harm."""
    clocked = [(sample, sample.mhz) for sample in samples if sample.mhz]
    first = {sample.lane: sample.round for sample, _ in sorted(clocked, key=lambda pair: -pair[0].round)}
    usual = {
        lane: statistics.median(clock for sample, clock in clocked if (sample.lane, sample.round) == (lane, number))
        for lane, number in first.items()
    }
    parts: dict[tuple[int, bool], list[float]] = {}
    for sample, clock in clocked:
        key = sample.round, sample.case.kind == "sustained"
        parts.setdefault(key, []).append(clock / usual[sample.lane])
    lowest = min(map(statistics.median, parts.values()), default=1.0)
    fix = "cool it, or let it rest between the cases, and measure again"
    if lowest < SLOWER:
        yield f"the clock fell to {100 * lowest:.0f} % of what it was at the beginning: {fix}"
    # On x86 the limit is what one core reaches alone, which several never do
    limits = [each.mhz_limit for each in moments if each.mhz_limit and emulation.family(machine.architecture) == "arm"]
    highest = max(usual.values(), default=0.0)
    if limits and 0 < highest < SLOWER * max(limits):
        yield f"the clock began at {highest:.0f} MHz where {max(limits):.0f} are allowed: {fix}"


def _cooled(root: Path) -> Iterator[str]:
    """Processors that a cooling device slows down, which is what the kernel does with a hot one."""
    for device in sysfs.found(root / "sys/class/thermal", "cooling_device*"):
        kind, state = sysfs.text(device / "type") or "", read_number(device / "cur_state")
        if (kind == "Processor" or "cpufreq" in kind) and state:
            yield f"{device.name} ({kind}) is at {state} of {read_number(device / 'max_state') or state}"


def _pi(root: Path) -> Iterator[str]:
    mask = _pi_mask(root) or 0
    for bit, reason in enumerate(PI_BITS):
        if mask >> bit & 1:
            yield f"the board's firmware says that {reason}"


def _pi_mask(root: Path) -> int | None:
    """What the firmware of a Raspberry Pi says: a hexadecimal file, or its own command."""
    told = sysfs.text(root / PI_MASK)
    if told is None and root == sysfs.ROOT and (command := shutil.which("vcgencmd")):
        try:
            done = subprocess.run([command, "get_throttled"], capture_output=True, text=True, check=False, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return None
        told = done.stdout.strip().removeprefix("throttled=")
    try:
        return int(told or "", 16)
    except ValueError:
        return None


def _texts(cpus: Collection[int], root: Path, name: str) -> list[str]:
    told = (sysfs.text(root / f"{sysfs.CPUS}/cpu{cpu}/cpufreq/{name}") for cpu in sorted(cpus))
    return [text for text in told if text is not None]


def _numbers(cpus: Collection[int], root: Path, name: str) -> list[int]:
    """Of the processors that tell; values are kHz, and 0 is none."""
    told = (read_number(root / f"{sysfs.CPUS}/cpu{cpu}/cpufreq/{name}") for cpu in sorted(cpus))
    return [value for value in told if value]


def _status(root: Path) -> list[str]:
    return (sysfs.text(root / "proc/self/status") or "").splitlines()
