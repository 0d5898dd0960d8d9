"""What a device says of itself, asked by one shell script: here, over SSH and over adb alike, with or without Python there.

    facts = here()
    facts = parse(connection.run("sh -s", input=SCRIPT))

What a device does not tell is None. Where Python runs on it, `machine`, `conditions` and `energy` know more and look again.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgellm.benchmarks import conditions, emulation
from edgellm.benchmarks.machine import Machine, known_features

SCRIPT = Path(__file__).with_name("facts.sh").read_text(encoding="utf-8")
PATIENCE = 30.0  # seconds: a sensor behind a slow bus may take some of them
SEPARATOR = "\t"
BEGIN, END = ("facts", "1"), ("end",)
FIELDS = {  # of a line, after its name; one where nothing else is said
    **dict.fromkeys(("android", "cpuinfo", "darwin", "energy", "memory", "temperature"), 2),
    **dict.fromkeys(("cooling", "core", "supply"), 3),
}
PROCESSORS = 1 << 13  # that a kernel of Linux is built for at most
UNLIMITED = 1 << 60  # bytes: version 1 of the control groups writes about so much where it has no limit

# ARM's own names of its cores, by the part number in MIDR_EL1 (Arm's technical reference manuals; implementer 0x41).
ARM_CORES = {
    0xC07: "Cortex-A7", 0xC08: "Cortex-A8", 0xC09: "Cortex-A9", 0xC0F: "Cortex-A15", 0xD03: "Cortex-A53", 0xD04: "Cortex-A35",
    0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72", 0xD09: "Cortex-A73", 0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78",
    0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD49: "Neoverse-N2",
    0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3", 0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
}  # fmt: skip
ARM = 0x41


@dataclass(frozen=True)
class Core:
    """A logical processor.

    Attributes:
        name: "Cortex-A76", or "0x51/0x804" of a maker whose names nobody knows here.
        capacity: as the scheduler sees it; the strongest of a chip have 1024.
        siblings: the processors that share its physical core, itself among them.
        mhz, max_mhz: its clock now, and what it may reach.
    """

    number: int
    name: str | None = None
    capacity: int | None = None
    siblings: str | None = None
    mhz: float | None = None
    max_mhz: float | None = None
    governor: str | None = None
    driver: str | None = None


@dataclass(frozen=True)
class Facts:
    """A device. Each is None where it does not tell.

    Attributes:
        system, kernel, architecture: as uname says: "Linux", "6.6.31", "aarch64".
        emulated: why it is no real machine, in a clause.
        model: of the board or device, as it calls itself.
        cpu: the processor's name; of ARM those of its kinds of core, "2 x Cortex-A76, 6 x Cortex-A55".
        features: those that matter for 4- and 8-bit kernels; see `machine.FEATURES`.
        cores: in the order of their numbers.
        celsius: the hottest reading of each kind of sensor.
        throttled: what holds its processors back now, a reason each; empty where nothing does.
        energy: counters of energy or power that this user may read, by name.
        battery: what it does, such as "Discharging".
        memory, available: bytes of RAM, and of it what is to be had; `memory_limit` is that of its control groups.
        quota: processors' worth of time that its control groups allow; None is without a limit too.
        disk: bytes that are free where the user's home is.
        libc: "glibc 2.36", or "musl".
        android: properties by name, of Android.
    """

    system: str | None = None
    kernel: str | None = None
    architecture: str | None = None
    emulated: str | None = None
    model: str | None = None
    cpu: str | None = None
    features: tuple[str, ...] | None = None
    cores: tuple[Core, ...] | None = None
    celsius: Mapping[str, float] | None = None
    throttled: tuple[str, ...] | None = None
    energy: tuple[str, ...] | None = None
    battery: str | None = None
    memory: int | None = None
    available: int | None = None
    memory_limit: int | None = None
    quota: float | None = None
    disk: int | None = None
    libc: str | None = None
    android: Mapping[str, str] | None = None

    @property
    def threads(self) -> int:
        """Threads that suit it, counted as `runtimes.threads` does where Python runs; 0 if its processors are not known."""
        cores = self.cores or ()
        strongest = max((core.capacity or 0 for core in cores), default=0)
        big = [core for core in cores if core.capacity is None or 2 * core.capacity >= strongest]
        physical = len({core.siblings or str(core.number) for core in big})
        return physical if self.quota is None else min(physical, max(1, int(self.quota)))

    def machine(self) -> Machine:
        """As a run's file names it, for a run that Python made nothing of."""
        known = [part for part in (self.system, self.kernel, self.architecture) if part]
        return Machine(
            system="-".join(known) or "unknown",
            architecture=self.architecture or "unknown",
            cpu=self.cpu or "unknown",
            features=self.features,
            cores=len(self.cores or ()),
            memory=self.memory,
            python="unknown",
            emulated=self.emulated,
            model=self.model,
        )


@dataclass(frozen=True)
class Python:
    """An interpreter on a device.

    Attributes:
        path: of its executable.
        version: "3.11.2".
        packages: version by name of those that matter here and are installed.
    """

    path: str
    version: str
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Looked:
    """What `look` of a host finds: the device, and the Python there that edgellm could use (None: there is none)."""

    facts: Facts
    python: Python | None = None


def here(root: Path | None = None) -> Facts:
    """This machine, or the one whose /proc and /sys lie below `root`; nothing is known where there is no shell (Windows)."""
    command = ["sh", "-s", *([] if root is None else [str(root)])]
    try:
        done = subprocess.run(command, input=SCRIPT.encode(), capture_output=True, check=False, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return Facts()
    return parse(done.stdout.decode(errors="replace"))


def parse(text: str) -> Facts:
    """What the script printed. What stands around it, such as a greeting of the login shell, does not count.

    Raises:
        ValueError: the script did not come to its end, so that what is missing may be there after all.
    """
    lines = [tuple(line.rstrip("\r").split(SEPARATOR)) for line in text.splitlines()]
    if BEGIN not in lines or END not in lines[lines.index(BEGIN) :]:
        raise ValueError("the facts have no end")
    first = lines.index(BEGIN)
    said = _Said(lines[first + 1 : lines.index(END, first)])
    cores = _cores(said)
    darwin = said.pairs("darwin")
    architecture = said.one("architecture")
    flags = [said.one("features") or "", *(name.rpartition(".")[2] for name, value in darwin.items() if value == "1")]
    limits = [number for value in said.all("memory_max") if (number := _whole(value[-1])) is not None and number < UNLIMITED]
    memory = said.pairs("memory")
    kilobytes = {name: number * 1024 for name, value in memory.items() if (number := _whole(value)) is not None}
    android = said.pairs("android")
    return Facts(
        system=said.one("system"),
        kernel=said.one("kernel"),
        architecture=architecture,
        emulated=_emulated(said, architecture),
        model=said.one("model") or _android_model(android) or darwin.get("hw.model"),
        cpu=_cpu(said, cores, android) or darwin.get("machdep.cpu.brand_string"),
        features=known_features(" ".join(flags)) if "".join(flags) else None,
        cores=tuple(cores) or tuple(Core(number) for number in range(_whole(darwin.get("hw.logicalcpu")) or 0)) or None,
        celsius=_celsius(said),
        throttled=_throttled(said),
        energy=tuple(dict.fromkeys(" ".join(fields) for fields in said.all("energy"))) or None,
        battery=next((status for _, kind, status in said.all("supply") if kind == "Battery" and status), None),
        memory=kilobytes.get("MemTotal") or _whole(darwin.get("hw.memsize")),
        available=kilobytes.get("MemAvailable"),
        memory_limit=min(limits, default=None),
        quota=min(_quotas(said), default=None),
        disk=None if (free := _whole(said.one("disk"))) is None else free * 1024,
        libc=said.one("libc"),
        android=android or None,
    )


class _Said:
    """Lines by their first field."""

    def __init__(self, lines: Sequence[tuple[str, ...]]) -> None:
        self._lines: dict[str, list[tuple[str, ...]]] = {}
        for name, *fields in lines:
            self._lines.setdefault(name, []).append(tuple(each.strip() for each in fields))

    def all(self, name: str) -> list[tuple[str, ...]]:
        return [fields for fields in self._lines.get(name, ()) if len(fields) == FIELDS.get(name, 1)]

    def one(self, name: str) -> str | None:
        return next((fields[0] for fields in self.all(name) if fields[0]), None)

    def pairs(self, name: str) -> dict[str, str]:
        return {fields[0]: fields[1] for fields in self.all(name)}


def _whole(value: str | None) -> int | None:
    return int(value) if value is not None and re.fullmatch(r"-?[0-9]{1,19}", value) else None


def _cores(said: _Said) -> list[Core]:
    """Of those that are online; one that is not has no clock, and runs nothing."""
    told: dict[int, dict[str, str]] = {}
    for number, name, value in said.all("core"):
        if (known := _whole(number)) is not None:
            told.setdefault(known, {})[name] = value
    processor = None
    for name, value in said.all("cpuinfo"):
        if name == "processor":
            processor = _whole(value)
            if processor is not None:
                told.setdefault(processor, {})
        elif processor is not None:
            told[processor].setdefault(name, value)
    online = said.one("online")
    numbers = sorted(told) if online is None else _listed(online)
    return [_core(number, told.get(number, {})) for number in numbers]


def _listed(text: str) -> list[int]:
    """ "0-3,6" as the kernel lists processors, in their order."""
    found = [-1]
    for part in text.split(","):
        low, _, high = part.partition("-")
        start, end = _whole(low), _whole(high or low)
        if start is not None and end is not None and found[-1] < start <= end < PROCESSORS:
            found += range(start, end + 1)
    return found[1:]


def _core(number: int, told: Mapping[str, str]) -> Core:
    def mhz(*names: str) -> float | None:
        values = [khz / 1000 for name in names if (khz := _whole(told.get(name)))]
        return values[0] if values else None

    clock = told.get("cpu MHz", "")
    return Core(
        number,
        name=_arm_name(told),
        capacity=_whole(told.get("capacity")),
        siblings=told.get("siblings"),
        mhz=mhz("scaling_cur_freq") or (float(clock) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", clock) else None),
        max_mhz=mhz("scaling_max_freq", "cpuinfo_max_freq"),
        governor=told.get("scaling_governor"),
        driver=told.get("scaling_driver"),
    )


def _arm_name(told: Mapping[str, str]) -> str | None:
    try:
        if "midr" in told:
            midr = int(told["midr"], 16)
            implementer, part = midr >> 24 & 0xFF, midr >> 4 & 0xFFF
        else:
            implementer, part = int(told["CPU implementer"], 16), int(told["CPU part"], 16)
    except (KeyError, ValueError):
        return None
    known = ARM_CORES.get(part) if implementer == ARM else None
    return known or f"{implementer:#x}/{part:#x}"


def _cpu(said: _Said, cores: Sequence[Core], android: Mapping[str, str]) -> str | None:
    cpuinfo = said.pairs("cpuinfo")
    counts: dict[str, int] = {}
    for core in sorted(cores, key=lambda core: -(core.capacity or 0)):
        if core.name is not None:
            counts[core.name] = counts.get(core.name, 0) + 1
    kinds = ", ".join(f"{count} x {name}" for name, count in counts.items())
    chip = " ".join(part for part in (android.get("ro.soc.manufacturer"), android.get("ro.soc.model")) if part)
    chip = chip or cpuinfo.get("Hardware", "")
    if kinds:
        return f"{chip} ({kinds})" if chip else kinds
    return cpuinfo.get("model name") or chip or None


def _android_model(android: Mapping[str, str]) -> str | None:
    return " ".join(part for part in (android.get("ro.product.manufacturer"), android.get("ro.product.model")) if part) or None


def _emulated(said: _Said, architecture: str | None) -> str | None:
    """By what the kernel shows of its own processor; see `emulation.emulated`, which looks at more where Python runs."""
    ours = emulation.family(architecture or "")
    told = {emulation.family(said.one("kernel_architecture") or "")}
    told |= {emulation.FIELDS[name] for name, _ in said.all("cpuinfo") if name in emulation.FIELDS}
    others = sorted(name for name in told - {ours} if name is not None)
    return f"{architecture} is emulated on {others[0]} here" if ours is not None and others else None


def _celsius(said: _Said) -> dict[str, float] | None:
    found: dict[str, float] = {}
    for name, value in said.all("temperature"):
        degrees = (_whole(value) or 0) / 1000
        if conditions.LOWEST < degrees < conditions.HIGHEST and degrees:
            found[name] = max(degrees, found.get(name, degrees))
    return found or None


def _throttled(said: _Said) -> tuple[str, ...] | None:
    """By what tells of processors: a fan that turns says nothing of them."""
    held = [(kind, most, state) for kind, most, state in said.all("cooling") if kind == "Processor" or "cpufreq" in kind]
    states = [(kind, most, number) for kind, most, state in held if (number := _whole(state)) is not None]
    match = re.fullmatch("(?:throttled=)?(?:0x)?([0-9a-f]{1,16})", said.one("pi_throttled") or "", re.IGNORECASE)
    if not states and match is None:
        return None
    mask = 0 if match is None else int(match[1], 16)
    found = [f"{kind} is at {state} of {most or state}" for kind, most, state in states if state]
    found += [f"the board's firmware says that {why}" for bit, why in enumerate(conditions.PI_BITS) if mask >> bit & 1]
    return tuple(found)


def _quotas(said: _Said) -> Iterator[float]:
    for (value,) in said.all("cpu_max"):
        quota, _, period = value.partition(" ")
        if (allowed := _whole(quota)) is not None and allowed > 0 and (whole := _whole(period)):
            yield allowed / whole
