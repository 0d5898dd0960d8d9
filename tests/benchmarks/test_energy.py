"""Counters of energy over laid-out sysfs trees: what goes in is known, and time passes when the test says so."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edgellm.benchmarks.energy import Counter, find_counter
from tests.sysfs_tree import Clock, lay

RAPL = "sys/class/powercap/intel-rapl:"
HWMON = "sys/class/hwmon/hwmon"
BATTERY = "sys/class/power_supply/BAT0"
WRAP = 262_143_328_850


def found(root: Path, clock: Clock | None = None) -> Counter:
    counter = find_counter(root, clock or Clock())
    assert counter is not None
    return counter


def package(number: int, energy: int) -> dict[str, object]:
    folder = f"{RAPL}{number}"
    return {f"{folder}/name": f"package-{number}", f"{folder}/energy_uj": energy, f"{folder}/max_energy_range_uj": WRAP}


def test_a_host_that_offers_nothing(tmp_path: Path) -> None:
    assert find_counter(tmp_path) is None


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    part = {f"{RAPL}0:0/name": "core", f"{RAPL}0:0/energy_uj": 7, f"{RAPL}0:0/max_energy_range_uj": WRAP}
    lay(tmp_path, {**package(0, 5_000_000), **package(1, 900), **part})
    counter = found(tmp_path)
    assert counter.name == "RAPL package-0 package-1"
    assert counter.joules() == 0
    lay(tmp_path, {f"{RAPL}0/energy_uj": 8_000_000, f"{RAPL}1/energy_uj": 500_900, f"{RAPL}0:0/energy_uj": 2_000_000})
    assert counter.joules() == pytest.approx(3.5)
    assert counter.joules() == pytest.approx(3.5)


def test_a_count_that_wraps_goes_on(tmp_path: Path) -> None:
    lay(tmp_path, package(0, WRAP - 1_000_000))
    counter = found(tmp_path)
    for _ in range(2):  # each time a whole turn less one joule, and two
        lay(tmp_path, {f"{RAPL}0/energy_uj": 1_000_000})
        counter.joules()
        lay(tmp_path, {f"{RAPL}0/energy_uj": WRAP - 1_000_000})
        counter.joules()
    assert counter.joules() == pytest.approx(2 * WRAP / 1e6)


def test_the_platform_counts_instead_of_its_packages(tmp_path: Path) -> None:
    psys = {f"{RAPL}1/name": "psys", f"{RAPL}1/energy_uj": 10, f"{RAPL}1/max_energy_range_uj": WRAP}
    lay(tmp_path, {**package(0, 5), **psys})
    counter = found(tmp_path)
    assert counter.name == "RAPL psys"
    lay(tmp_path, {f"{RAPL}0/energy_uj": 1_000_005, f"{RAPL}1/energy_uj": 2_000_010})
    assert counter.joules() == pytest.approx(2)


def test_what_a_user_may_not_read_is_passed_over(tmp_path: Path) -> None:
    lay(tmp_path, {**package(0, 5), f"{HWMON}0/name": "ina226", f"{HWMON}0/power1_input": 3_000_000})
    lay(tmp_path, {f"{RAPL}0/energy_uj": None})
    assert found(tmp_path).name == "hwmon ina226"


def test_a_chip_that_counts_joules(tmp_path: Path) -> None:
    """amd_energy: a count for each core beside those of the sockets."""
    labels = {"energy1": "Ecore000", "energy2": "Ecore001", "energy3": "Esocket0", "energy4": "Esocket1"}
    lay(tmp_path, {f"{HWMON}3/name": "amd_energy"})
    lay(tmp_path, {f"{HWMON}3/{name}_label": label for name, label in labels.items()})
    lay(tmp_path, {f"{HWMON}3/{name}_input": 1_000_000 for name in labels})
    counter = found(tmp_path)
    assert counter.name == "hwmon amd_energy Esocket0 Esocket1"
    lay(tmp_path, {f"{HWMON}3/{name}_input": 3_000_000 for name in labels})
    assert counter.joules() == pytest.approx(4)
    lay(tmp_path, {f"{HWMON}3/energy3_input": 0})  # it was reset: how much is missing, nobody knows
    assert counter.joules() is None
    assert counter.joules() is None


def test_watts_are_summed_up_over_time(tmp_path: Path) -> None:
    lay(tmp_path, {f"{HWMON}0/name": "ina238", f"{HWMON}0/power1_input": 4_000_000})
    clock = Clock()
    counter = found(tmp_path, clock)
    clock.now += 0.5
    assert counter.joules() == pytest.approx(2)
    lay(tmp_path, {f"{HWMON}0/power1_input": 8_000_000})
    clock.now += 0.25
    assert counter.joules() == pytest.approx(2 + 0.25 * 6)
    clock.now += 2
    assert counter.joules() == pytest.approx(2 + 0.25 * 6 + 2 * 8)


def test_an_ina_of_a_jetson_takes_the_input_of_the_board(tmp_path: Path) -> None:
    rails = {1: ("VDD_CPU_GPU_CV", 5000, 100), 2: ("VDD_IN", 19_000, 1000), 3: ("VDD_SOC", 5000, 200)}
    lay(tmp_path, {f"{HWMON}1/name": "ina3221"})
    for number, (label, millivolts, milliamperes) in rails.items():
        here = f"{HWMON}1/"
        lay(tmp_path, {f"{here}in{number}_label": label, f"{here}in{number}_input": millivolts})
        lay(tmp_path, {f"{here}curr{number}_input": milliamperes})
    clock = Clock()
    counter = found(tmp_path, clock)
    assert counter.name == "hwmon ina3221 VDD_IN"
    clock.now += 2
    assert counter.joules() == pytest.approx(38)


def test_a_graphics_card_is_not_the_host(tmp_path: Path) -> None:
    for number, chip in enumerate(("amdgpu", "nvme", "BAT0", "sfp_xp0")):
        lay(tmp_path, {f"{HWMON}{number}/name": chip, f"{HWMON}{number}/power1_input": 9_000_000})
    assert find_counter(tmp_path) is None


def test_a_battery_counts_while_it_feeds_the_machine(tmp_path: Path) -> None:
    mouse = "sys/class/power_supply/hidpp_battery_0"
    lay(tmp_path, {f"{mouse}/type": "Battery", f"{mouse}/scope": "Device", f"{mouse}/status": "Discharging"})
    lay(tmp_path, {f"{mouse}/energy_now": 100})
    lay(tmp_path, {f"{BATTERY}/type": "Battery", f"{BATTERY}/status": "Charging", f"{BATTERY}/energy_now": 50_000_000})
    assert find_counter(tmp_path) is None
    lay(tmp_path, {f"{BATTERY}/status": "Discharging"})
    counter = found(tmp_path)
    assert counter.name == "battery BAT0"
    assert find_counter(tmp_path, minutes=False) is None, "its steps are longer than a case"
    lay(tmp_path, {f"{BATTERY}/energy_now": 49_990_000})
    assert counter.joules() == pytest.approx(36)  # 10 mWh
    lay(tmp_path, {f"{BATTERY}/status": "Charging"})
    assert counter.joules() is None


def test_a_battery_that_counts_charge(tmp_path: Path) -> None:
    lay(tmp_path, {f"{BATTERY}/type": "Battery", f"{BATTERY}/status": "Discharging"})
    lay(tmp_path, {f"{BATTERY}/charge_now": 3_000_000, f"{BATTERY}/voltage_now": 4_000_000})
    counter = found(tmp_path)
    lay(tmp_path, {f"{BATTERY}/charge_now": 2_999_000, f"{BATTERY}/voltage_now": 3_900_000})
    assert counter.joules() == pytest.approx(0.001 * 3600 * 3.95)


def test_a_thread_looks_between_calls_and_ends(tmp_path: Path) -> None:
    """Power that comes and goes between two calls is in the sum because the thread was there."""
    power = f"{HWMON}0/power1_input"
    lay(tmp_path, {f"{HWMON}0/name": "ina226", power: 1_000_000})
    clock, seen, pulse = Clock(), threading.Event(), [3_000_000, 1_000_000]

    def time() -> float:
        if threading.current_thread().name == "edgellm-energy":
            if pulse:
                lay(tmp_path, {power: pulse.pop(0)})
                clock.now += 1
            else:
                seen.set()
        return clock.now

    counter = find_counter(tmp_path, time)
    assert counter is not None
    with counter:
        assert seen.wait(60)
    assert "edgellm-energy" not in [thread.name for thread in threading.enumerate()]
    assert counter.joules() == pytest.approx(4)
