"""What `edgellm doctor` says of a device: its facts as lines, and advice where one of them could be better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.cli._options import readable

if TYPE_CHECKING:
    from edgellm.benchmarks.facts import Core, Facts

HOT = 80.0  # degrees from which boards slow down
LITTLE_DISK = 1_000_000_000


@dataclass(frozen=True)
class Finding:
    """One line of the report, and what to do if something could be better."""

    name: str
    text: str
    advice: str | None = None


def system(facts: Facts) -> Iterator[Finding]:
    """What Python tells of the machine that it runs on, and here the script has to."""
    known = [part for part in (facts.system, facts.kernel, facts.architecture, facts.libc) if part]
    yield Finding("system", ", ".join(known) or "unknown")
    yield Finding("cpu", f"{facts.cpu or 'unknown'}, {len(facts.cores or ()) or 'an unknown number of'} logical processors")
    yield features(facts.features)
    yield Finding("threads", f"{facts.threads or 'unknown'} (what big physical cores and the CPU quota leave)")


def features(found: Sequence[str] | None) -> Finding:
    """Of the processor, and whether 4- and 8-bit kernels gain from them."""
    from edgellm.benchmarks.machine import FAST_INT8

    if found is None:
        return Finding("cpu features", "unknown on this system")
    slow = "this CPU has no int8 dot product, so int4 gains little speed over int8 or float32: it saves memory"
    return Finding("cpu features", ", ".join(found) or "none that matter", None if FAST_INT8 & set(found) else slow)


def device(facts: Facts) -> Iterator[Finding]:
    """What a machine tells of its board, its processors' clocks, heat, energy and limits."""
    if facts.emulated:
        yield Finding("emulated", facts.emulated, "its speed says nothing: measure on the hardware itself")
    if facts.model:
        yield Finding("board", facts.model)
    if facts.android:
        release = facts.android.get("ro.build.version.release", "of unknown version")
        yield Finding("android", f"{release}, {facts.android.get('ro.product.cpu.abi', 'unknown ABI')}")
    cores = facts.cores or ()
    kinds = _kinds(cores)
    if kinds:
        yield Finding("cores", kinds)
    yield from _governor(cores)
    if facts.quota is not None:
        below = facts.quota < len(cores)
        advice = f"the CPU quota is {facts.quota:g} of {len(cores)} processors: raise the container's limit" if below else None
        yield Finding("cpu quota", f"{facts.quota:g} processors", advice)
    if facts.memory_limit is not None and facts.memory_limit < (facts.memory or 0):
        yield Finding("memory limit", f"{readable(facts.memory_limit)} (of the control group)")
    if facts.disk is not None:
        little = "there is little disk for bundles: free some" if facts.disk < LITTLE_DISK else None
        yield Finding("disk", f"{readable(facts.disk)} free at home", little)
    yield from _heat(facts)
    if facts.energy:
        yield Finding("energy", f"counted by {', '.join(facts.energy)}")
    elif facts.battery:
        yield Finding("energy", f"a battery, {facts.battery.lower()}")
    elif facts.system == "Linux":
        yield Finding("energy", "no counter that this user may read")


def _kinds(cores: Sequence[Core]) -> str:
    """ "4 x Cortex-A76 up to 2,400 MHz, 4 x Cortex-A55 up to 1,800 MHz"; "" where nothing is known but their number."""
    counts: dict[str, int] = {}
    for core in cores:
        clock = "" if core.max_mhz is None else f" up to {core.max_mhz:,.0f} MHz"
        capacity = "" if core.capacity is None else f" (capacity {core.capacity})"
        kind = f"{core.name or 'processor'}{clock}{capacity}"
        counts[kind] = counts.get(kind, 0) + 1
    known = any(core.name or core.max_mhz or core.capacity for core in cores)
    return ", ".join(f"{count} x {kind}" for kind, count in counts.items()) if known else ""


def _governor(cores: Sequence[Core]) -> Iterator[Finding]:
    from edgellm.benchmarks.conditions import AUTONOMOUS, STEADY

    found = sorted({core.governor for core in cores if core.governor})
    drivers = {core.driver for core in cores if core.governor}
    if not found:
        return
    held = [name for name in found if name not in STEADY and not (name == "powersave" and drivers <= set(AUTONOMOUS))]
    clocks = [core.mhz for core in cores if core.mhz]
    now = f", {min(clocks):,.0f} to {max(clocks):,.0f} MHz now" if clocks else ""
    cure = "set the governor to performance while you measure: cpupower frequency-set -g performance"
    yield Finding("governor", ", ".join(found) + now, f"{', '.join(held)} may hold the clock back: {cure}" if held else None)


def _heat(facts: Facts) -> Iterator[Finding]:
    if facts.celsius:
        name, degrees = max(facts.celsius.items(), key=lambda pair: pair[1])
        hot = f"{name} is at {degrees:.0f} degrees: cool it, or it slows down" if degrees >= HOT else None
        yield Finding("temperature", f"{degrees:.0f} degrees ({name})", hot)
    if facts.throttled is not None:
        reasons = "; ".join(facts.throttled)
        advice = f"it is throttled now ({reasons}): cool it or feed it better before you measure" if reasons else None
        yield Finding("throttling", reasons or "none now", advice)
