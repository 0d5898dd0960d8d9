"""Joules that the host takes, where it has something that counts them.

    counter = find_counter()
    if counter is not None:
        with counter:
            before = counter.joules()

Looked for in this order, best first:

    RAPL       the processor's own count: the whole platform (psys) if there is one, else its packages together
    hwmon      energy*_input, a count by a chip on the board
    hwmon      power*_input, or curr*_input times in*_input of an INA chip: watts, summed up over time
    battery    what is in it, when it feeds the machine: in steps of many seconds, so for sustained runs alone

What a source feeds is what its joules are of: a whole board, a laptop with its screen, or the processor's package.

Formats: Documentation/power/powercap, hwmon/sysfs-interface and ABI/testing/sysfs-class-power of the Linux kernel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol

from edgellm.benchmarks import sysfs
from edgellm.runtimes.cgroup import read_number

POWER_RATE = 10.0  # looks a second at a sensor of power: reading one over I2C takes it about a millisecond
COUNT_RATE = 0.1  # at a count, which must not wrap twice unseen: the smallest one lasts minutes at full power
MICRO = 1e-6
UWH = 3600 * MICRO  # joules in a microwatt hour

# hwmon chips that feel one part of a machine and not the machine: graphics, network, disks, and batteries seen twice.
PARTS = ("amdgpu", "radeon", "nouveau", "i915", "xe", "nvme", "sfp", "mlx", "ucsi", "iwlwifi", "BAT")
INPUTS = ("VDD_IN", "VIN", "POM_5V_IN", "VIN_SYS_5V0", "SYS")  # labels of what feeds the whole board


class Meter(Protocol):
    """Something that can be looked at again and again."""

    def since(self) -> float | None:
        """Joules since the last look, or since it was made; None where it cannot be read."""
        ...


class Counter:
    """Joules of one source since this counter was made. Enter it to have a thread look at the source between calls.

    Attributes:
        name: the source: "RAPL package-0", "hwmon ina3221 VDD_IN", "battery BAT0".
    """

    def __init__(self, name: str, meter: Meter, rate: float) -> None:
        self.name = name
        self._meter, self._period = meter, 1 / rate
        self._total: float | None = 0.0
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="edgellm-energy", daemon=True)

    def joules(self) -> float | None:
        """The sum up to now; None from when the source could not be read, for what was missed nobody knows."""
        with self._lock:
            more = self._meter.since()
            self._total = None if self._total is None or more is None else self._total + more
            return self._total

    def __enter__(self) -> Counter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(self._period):
            self.joules()


def find_counter(
    root: Path = sysfs.ROOT, clock: Callable[[], float] = time.monotonic, *, minutes: bool = True
) -> Counter | None:
    """The best counter that this host offers and this user may read; None if there is none.

    Args:
        minutes: whether it is for minutes together: a battery's steps are longer than a case.
    """
    batteries = _battery(root) if minutes else ()
    for name, meter, rate in (*_rapl(root), *_hwmon_counts(root), *_hwmon_power(root, clock), *batteries):
        if meter.since() is not None:
            return Counter(name, meter, rate)
    return None


class Count:
    """Files that count microjoules up, each to where it wraps (None: it does not)."""

    def __init__(self, files: list[tuple[Path, int | None]]) -> None:
        self._files = files
        self._last = [read_number(file) for file, _ in files]

    def since(self) -> float | None:
        """As Meter says."""
        now = [read_number(file) for file, _ in self._files]
        joules = 0.0
        for (_, wrap), before, after in zip(self._files, self._last, now, strict=True):
            if before is None or after is None or (after < before and wrap is None):
                return None
            joules += (after - before + (wrap or 0 if after < before else 0)) * MICRO
        self._last = now
        return joules


class Power:
    """Watts over time: between two looks the mean of both holds."""

    def __init__(self, watts: Callable[[], float | None], clock: Callable[[], float]) -> None:
        self._watts, self._clock = watts, clock
        self._at, self._last = clock(), watts()

    def since(self) -> float | None:
        """As Meter says."""
        at, watts = self._clock(), self._watts()
        if watts is None or self._last is None:
            return None
        joules = (watts + self._last) / 2 * (at - self._at)
        self._at, self._last = at, watts
        return joules


class Battery:
    """What leaves the batteries while at least one of them feeds the machine and none is charged."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._last = [_content(folder) for folder in folders]

    def since(self) -> float | None:
        """As Meter says."""
        status = {sysfs.text(folder / "status") for folder in self._folders}
        now = [_content(folder) for folder in self._folders]
        joules = 0.0
        for before, after in zip(self._last, now, strict=True):
            if before is None or after is None or "Discharging" not in status or "Charging" in status:
                return None
            # of a battery that counts charge, the voltage falls with it: it is that between the two looks
            joules += (before[0] - after[0]) * (before[1] + after[1]) / 2
        self._last = now
        return joules


def _content(folder: Path) -> tuple[float, float] | None:
    """(amount, joules in one of it): of energy in uWh, or of charge in uAh at the voltage of this moment."""
    energy = read_number(folder / "energy_now")
    if energy is not None:
        return energy, UWH
    charge, voltage = (read_number(folder / name) for name in ("charge_now", "voltage_now"))
    return None if charge is None or voltage is None else (charge, voltage * MICRO * UWH)


Found = Iterator[tuple[str, Meter, float]]


def _rapl(root: Path) -> Found:
    zones: dict[str, tuple[Path, int | None]] = {}
    for zone in sysfs.found(root / "sys/class/powercap", "intel-rapl:*"):
        name = sysfs.text(zone / "name")
        if name is not None and name.startswith(("psys", "package")):  # not what lies inside them: core, uncore, dram
            zones[name] = zone / "energy_uj", read_number(zone / "max_energy_range_uj")
    whole = [name for name in zones if name == "psys"]
    for names in (whole, [name for name in zones if name not in whole]):
        if names:
            yield f"RAPL {' '.join(names)}", Count([zones[name] for name in names]), COUNT_RATE


def _chips(root: Path) -> Iterator[tuple[str, Path]]:
    for folder in sysfs.found(root / "sys/class/hwmon", "hwmon*"):
        name = sysfs.text(folder / "name")
        if name is not None and not name.startswith(PARTS):
            yield name, folder


def _hwmon_counts(root: Path) -> Found:
    for chip, folder in _chips(root):
        labels = {file: _label(file) for file in sysfs.found(folder, "energy*_input")}
        sockets = [file for file, label in labels.items() if label.startswith("Esocket")]
        files = sockets or list(labels)[:1]  # beside a socket's count there is one for each of its cores
        if files:
            name = " ".join(["hwmon", chip, *(labels[file] for file in files if labels[file])])
            yield name, Count([(file, None) for file in files]), COUNT_RATE


def _hwmon_power(root: Path, clock: Callable[[], float]) -> Found:
    rails: list[tuple[str, str, Callable[[], float | None]]] = []
    for chip, folder in _chips(root):
        powers = sysfs.found(folder, "power*_input")
        rails += [(chip, _label(file), _watts(file)) for file in powers]
        if not powers and chip.startswith("ina"):
            for current in sysfs.found(folder, "curr*_input"):
                voltage = current.with_name(current.name.replace("curr", "in"))
                rails.append((chip, _label(voltage) or _label(current), _watts(current, voltage)))
    # several rails may lie behind each other, so they are not added up: the board's input, or the first one
    for chip, label, watts in sorted(rails, key=lambda rail: rail[1] not in INPUTS):
        yield f"hwmon {chip} {label}".rstrip(), Power(watts, clock), POWER_RATE


def _label(file: Path) -> str:
    return sysfs.text(file.with_name(file.name.replace("_input", "_label"))) or ""


def _watts(file: Path, other: Path | None = None) -> Callable[[], float | None]:
    """Of a file in microwatts, or of one in milliamperes and one in millivolts."""

    def read() -> float | None:
        value, factor = read_number(file), 1 if other is None else read_number(other)
        return None if value is None or factor is None else value * factor * MICRO

    return read


def _battery(root: Path) -> Found:
    folders = [
        folder
        for folder in sysfs.found(root / "sys/class/power_supply", "*")
        # the battery of a mouse has the scope "Device"
        if sysfs.text(folder / "type") == "Battery" and sysfs.text(folder / "scope") in (None, "System")
    ]
    if folders:
        yield f"battery {' '.join(folder.name for folder in folders)}", Battery(folders), COUNT_RATE
