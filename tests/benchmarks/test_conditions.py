"""What is read of a machine, and what speaks against a run, over laid-out /proc and /sys trees."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.benchmarks import conditions
from edgellm.benchmarks.machine import Machine
from edgellm.benchmarks.result import Case, Moment, Sample
from tests.sysfs_tree import lay

CPUS = "sys/devices/system/cpu/cpu"
THERMAL = "sys/class/thermal/"
ARM = Machine("Linux", "aarch64", "Cortex-A76", ("dotprod",), 4, 8 << 30, "CPython 3.11")
X86 = replace(ARM, architecture="x86_64", cpu="a desktop")
GOOD = Moment(0.0, load=0.1, others=0.02, celsius=50.0, mhz=2400.0, mhz_limit=2400.0, governor="schedutil")
DECODE = Case("decode", depth=128, steps=64)


def board(root: Path, **cpufreq: object) -> Path:
    """Four processors with these files in cpufreq."""
    return lay(root, {f"{CPUS}{cpu}/cpufreq/{name}": value for cpu in range(4) for name, value in cpufreq.items()})


def sample(number: int, **values: object) -> Sample:
    return replace(Sample("a", DECODE, number, float(number), 2.0, mhz=2400.0, others=0.0), **values)  # type: ignore[arg-type]


def test_a_host_that_tells_nothing(tmp_path: Path) -> None:
    here = conditions.moment(3.0, [0, 1], tmp_path, 0)
    assert here == Moment(3.0, load=here.load)
    assert conditions.celsius(tmp_path) is None
    assert conditions.mhz([0], tmp_path) is None
    assert conditions.doubts([replace(here, load=None)], [sample(1)], ARM, tmp_path) == ()


def test_a_board(tmp_path: Path) -> None:
    board(tmp_path, scaling_cur_freq=1_500_000, scaling_max_freq=2_400_000, scaling_governor="ondemand")
    lay(tmp_path, {f"{CPUS}3/cpufreq/scaling_cur_freq": 2_100_000, f"{CPUS}3/cpufreq/scaling_governor": "schedutil"})
    lay(tmp_path, {f"{THERMAL}thermal_zone0/temp": 61_250, f"{THERMAL}thermal_zone1/temp": 255_000})
    lay(tmp_path, {"sys/class/hwmon/hwmon0/temp1_input": 65_500, "sys/class/hwmon/hwmon0/temp1_crit": 110_000})
    here = conditions.moment(1.0, [2, 3], tmp_path, 0)
    assert (here.celsius, here.mhz, here.mhz_limit, here.governor) == (65.5, 1800.0, 2400.0, "ondemand/schedutil")
    assert (here.others, here.busiest, here.throttled) == (None, "", ())


def test_clocks_of_a_host_without_cpufreq(tmp_path: Path) -> None:
    listed = "".join(f"processor\t: {cpu}\ncpu MHz\t\t: {clock}\n\n" for cpu, clock in enumerate(("3000.5", "2000.0", "800.0")))
    lay(tmp_path, {"proc/cpuinfo": listed})
    assert conditions.mhz([0, 1], tmp_path) == pytest.approx(2500.25)
    assert conditions.moment(0.0, [2], tmp_path, 0).mhz == 800.0


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not count what processes take")
def test_others_are_seen_at_work(tmp_path: Path) -> None:
    """Somebody else is played by threads of this process: the kernel's count of all processors has them."""
    end = threading.Event()

    def work() -> None:
        while not end.is_set():
            sum(range(1000))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        seen = conditions.moment(0.0, [0], tmp_path, 0.3)
    finally:
        end.set()
        thread.join()
    assert seen.others is not None
    assert seen.others > 0.1
    assert seen.load == pytest.approx(os.getloadavg()[0], abs=1)


def test_a_processor_that_is_cooled(tmp_path: Path) -> None:
    devices = {0: ("Processor", 3, 10), 1: ("Fan", 1, 1), 2: ("cpufreq-cpu0", 0, 8), 3: ("thermal-cpufreq-0", 2, 8)}
    for number, (kind, state, top) in devices.items():
        here = f"{THERMAL}cooling_device{number}/"
        lay(tmp_path, {f"{here}type": kind, f"{here}cur_state": state, f"{here}max_state": top})
    assert conditions.moment(0.0, [0], tmp_path, 0).throttled == (
        "cooling_device0 (Processor) is at 3 of 10",
        "cooling_device3 (thermal-cpufreq-0) is at 2 of 8",
    )


def test_throttling_is_what_was_counted_since_the_earlier_look(tmp_path: Path) -> None:
    for cpu in range(2):
        lay(tmp_path, {f"{CPUS}{cpu}/thermal_throttle/{kind}_throttle_count": 7 for kind in ("core", "package")})
    counts = conditions.throttle_counts(tmp_path)
    assert conditions.moment(0.0, [0], tmp_path, 0, counts).throttled == ()
    lay(tmp_path, {f"{CPUS}1/thermal_throttle/core_throttle_count": 9})
    assert conditions.moment(0.0, [0], tmp_path, 0, counts).throttled == ("core_throttle_count went from 14 to 16",)
    assert conditions.moment(0.0, [0], tmp_path, 0).throttled == (), "what was before the run is none of its business"


def test_what_the_firmware_of_a_raspberry_pi_says(tmp_path: Path) -> None:
    lay(tmp_path, {conditions.PI_MASK: "50000"})  # low voltage and throttling, but long ago
    counts = conditions.throttle_counts(tmp_path)
    assert conditions.moment(0.0, [0], tmp_path, 0, counts).throttled == ()
    lay(tmp_path, {conditions.PI_MASK: "50005"})
    now = ("the board's firmware says that its voltage is too low", "the board's firmware says that it throttles")
    assert conditions.moment(0.0, [0], tmp_path, 0, counts).throttled == now
    lay(tmp_path, {conditions.PI_MASK: "d0000"})  # it was near its limit, between two looks
    assert conditions.moment(0.0, [0], tmp_path, 0, counts).throttled == ("what get_throttled remembers went from 5 to 13",)


def test_nothing_speaks_against_a_good_run(tmp_path: Path) -> None:
    board(tmp_path, scaling_driver="cpufreq-dt")
    lay(tmp_path, {"proc/self/status": "Name:\tpython\nTracerPid:\t0"})
    samples = [sample(number, others=0.02, mhz=2400.0 - number) for number in range(6)]
    assert conditions.doubts([GOOD, replace(GOOD, at=60.0, load=4.0)], samples, ARM, tmp_path) == ()
    assert conditions.doubts([], [], ARM, tmp_path) == ()


def only(root: Path, moments: list[Moment], samples: list[Sample], machine: Machine = ARM) -> str:
    (doubt,) = conditions.doubts(moments, samples, machine, root)
    assert ": " in doubt, "it says what to do"
    return doubt


def test_a_machine_that_was_not_quiet(tmp_path: Path) -> None:
    busy = replace(GOOD, load=0.9, others=0.8, busiest="make (12)")
    before = only(tmp_path, [busy, GOOD], [sample(1)])
    assert before.startswith("the machine was not quiet before the run (others keep 0.80 processors busy")
    assert "make (12)" in before
    later = only(tmp_path, [GOOD, replace(busy, at=9.0), GOOD], [sample(1)])
    assert later.startswith("the machine was not quiet between the cases (others keep 0.80 processors busy")


def test_others_during_samples(tmp_path: Path) -> None:
    samples = [sample(number, others=0.7 if number == 3 else 0.01) for number in range(1, 6)]
    assert only(tmp_path, [GOOD], samples).startswith("others kept up to 0.70 processors busy during 1 of 5 samples")
    few = [sample(number, others=0.7 if number == 3 else 0.01) for number in range(1, 21)]
    assert conditions.doubts([GOOD], few, ARM, tmp_path) == (), "a sample of twenty moves no median"
    decode = Case("decode", depth=512, steps=64)
    one = [sample(number, case=decode, others=0.7 * (number in (2, 4))) for number in range(1, 6)]
    many = [sample(number, case=Case("prefill", length)) for length in range(1, 20) for number in range(1, 6)]
    assert only(tmp_path, [GOOD], [*one, *many]).startswith(
        "others kept up to 0.70 processors busy during 2 of 5 samples of decode after 512"
    )
    assert conditions.doubts([GOOD], [*one[:3], *one[4:], *many], ARM, tmp_path) == (), "one of four moves no median"
    windows = [sample(number, case=Case("sustained")) for number in range(1, 200)]
    each = [
        sample(number, case=Case("prefill", length), others=0.7 * (number == 3)) for length in (8, 16) for number in range(1, 6)
    ]
    assert only(tmp_path, [GOOD], [*each, *windows]).startswith(
        "others kept up to 0.70 processors busy during 2 of 10 samples:"
    )
    warm_up = [sample(0, others=0.7), sample(1)]
    assert conditions.doubts([GOOD], warm_up, ARM, tmp_path) == ()
    short = [sample(number, seconds=0.05, others=0.2) for number in range(1, 6)]
    assert conditions.doubts([GOOD], short, ARM, tmp_path) == (), "a tick of the kernel's clock is no disturbance"


@pytest.mark.parametrize(
    ("governor", "driver", "fine"),
    [
        ("performance", "acpi-cpufreq", True),
        ("schedutil", "cpufreq-dt", True),
        ("powersave", "intel_pstate", True),
        ("powersave", "amd-pstate-epp", True),
        ("powersave", "intel_cpufreq", False),
        ("powersave", "amd-pstate", False),
        ("ondemand", "cpufreq-dt", False),
        ("performance/conservative", "acpi-cpufreq", False),
        (None, None, True),
    ],
)
def test_governors(tmp_path: Path, governor: str | None, driver: str | None, fine: bool) -> None:
    if driver is not None:
        board(tmp_path, scaling_driver=driver)
    found = conditions.doubts([replace(GOOD, governor=governor)], [sample(1)], X86, tmp_path)
    assert (found == ()) == fine
    assert all(governor is not None and f"the governor {governor.split('/')[-1]} " in doubt for doubt in found)


def test_a_machine_that_throttled_says_so_once(tmp_path: Path) -> None:
    warm = replace(GOOD, throttled=("it throttles", "core_throttle_count went from 4 to 5", "cooling_device0 (x) is at 1 of 3"))
    hot = replace(GOOD, throttled=("it throttles", "core_throttle_count went from 4 to 9", "cooling_device0 (x) is at 3 of 3"))
    doubt = only(tmp_path, [GOOD, warm, hot, GOOD], [sample(1)])
    assert "(it throttles; core_throttle_count went from 4 to 9; cooling_device0 (x) is at 3 of 3)" in doubt


def test_a_clock_that_falls(tmp_path: Path) -> None:
    falling = [sample(number, mhz=2400.0 if number < 3 else 1800.0) for number in range(6)]
    assert "fell to 75 % of what it was" in only(tmp_path, [GOOD], falling)
    sustained = [sample(0), sample(1), sample(1, case=Case("sustained"), mhz=1200.0)]
    assert "50 %" in only(tmp_path, [GOOD], sustained)
    lanes = [
        sample(0, lane="1 thread", mhz=4800.0),
        sample(0, lane="8 threads", mhz=3600.0),
        sample(1, lane="8 threads", mhz=3600.0),
    ]
    assert conditions.doubts([GOOD], lanes, X86, tmp_path) == (), "more threads have a lower clock, and that is no fall"


def test_a_clock_below_its_limit_counts_where_there_is_no_boost(tmp_path: Path) -> None:
    held = [sample(number, mhz=1500.0) for number in range(3)]
    assert "began at 1500 MHz where 2400 are allowed" in only(tmp_path, [GOOD], held)
    assert conditions.doubts([GOOD], held, X86, tmp_path) == ()


def test_a_debugger(tmp_path: Path) -> None:
    lay(tmp_path, {"proc/self/status": "Name:\tpython\nTracerPid:\t4321"})
    assert "process 4321" in only(tmp_path, [GOOD], [sample(1)])


def test_an_emulated_host(tmp_path: Path) -> None:
    emulated = replace(ARM, emulated="aarch64 is emulated on x86 here")
    (doubt,) = conditions.doubts([GOOD], [sample(1)], emulated, tmp_path)
    assert doubt == "aarch64 is emulated on x86 here: measure on the hardware itself"
    assert conditions.doubts([GOOD], [sample(1)], X86, tmp_path) == ()
