"""Devices as /proc and /sys show them, read by the script in each shell that is here; Python's own readers are the oracle."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgellm.benchmarks import conditions, facts, machine
from edgellm.benchmarks.facts import Facts
from edgellm.runtimes import threads
from tests.sysfs_tree import lay

SHELLS = {name: command for name in ("sh", "dash", "bash", "busybox", "mksh", "zsh") if (command := shutil.which(name))}

PI5 = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/cpuinfo": "".join(
        f"processor\t: {cpu}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm aes fphp asimdhp asimddp\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
        for cpu in range(4)
    ),
    "proc/meminfo": "MemTotal:        8245184 kB\nMemFree:          512000 kB\nMemAvailable:    7340032 kB",
    "proc/sys/kernel/arch": "aarch64",
    "sys/devices/system/cpu/online": "0-3",
    **{f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": 1024 for cpu in range(4)},
    **{f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor": "ondemand" for cpu in range(4)},
    **{f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq": 1500000 for cpu in range(4)},
    **{f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq": 2400000 for cpu in range(4)},
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": 61200,
    "sys/class/hwmon/hwmon0/name": "rp1_adc",
    "sys/class/hwmon/hwmon0/temp1_input": 49876,
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005",
}
PHONE = {  # two big cores and six little ones, in a control group of version 2 with a quota
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\nHardware\t: Qualcomm SM8250\n\n"
    + "".join(f"processor\t: {cpu}\n\n" for cpu in range(1, 8)),
    "proc/self/cgroup": "0::/user.slice/app",
    "sys/fs/cgroup/user.slice/app/cpu.max": "max 100000",
    "sys/fs/cgroup/user.slice/cpu.max": "150000 100000",
    "sys/fs/cgroup/user.slice/app/memory.max": 2147483648,
    "proc/meminfo": "MemTotal: 7900000 kB",
    "sys/devices/system/cpu/online": "0-7",
    **{f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": 1024 if cpu > 5 else 325 for cpu in range(8)},
    **{
        f"sys/devices/system/cpu/cpu{cpu}/regs/identification/midr_el1": f"0x00000000{'414fd0d0' if cpu > 5 else '411fd050'}"
        for cpu in range(8)
    },
    "sys/class/power_supply/battery/type": "Battery",
    "sys/class/power_supply/battery/status": "Discharging",
    "sys/class/power_supply/usb/type": "USB",
    "sys/class/thermal/cooling_device0/type": "cpufreq-cpu6",
    "sys/class/thermal/cooling_device0/cur_state": 3,
    "sys/class/thermal/cooling_device0/max_state": 17,
    "sys/class/thermal/cooling_device1/type": "fan",
    "sys/class/thermal/cooling_device1/cur_state": 2,
}
JETSON = {
    "sys/class/hwmon/hwmon3/name": "ina3221",
    "sys/class/hwmon/hwmon3/curr1_input": 1200,
    "sys/class/hwmon/hwmon3/in1_input": 5000,
    "sys/class/hwmon/hwmon3/curr1_label": "VDD_IN",
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": 123456,
    "proc/self/cgroup": "4:cpu,cpuacct:/box\n7:memory:/box",
    "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": 250000,
    "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": 100000,
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": -1,
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000,
    "sys/fs/cgroup/memory/box/memory.limit_in_bytes": 1073741824,
    "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
}


def ask(root: Path, shell: str = "sh") -> Facts:
    command = [SHELLS[shell], *(["sh"] if shell == "busybox" else []), "-s", str(root)]
    done = subprocess.run(command, input=facts.SCRIPT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return facts.parse(done.stdout)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_raspberry_pi(tmp_path: Path, shell: str) -> None:
    root = lay(tmp_path, PI5)
    found = ask(root, shell)
    assert found.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.cpu == "4 x Cortex-A76"
    assert found.features == machine.known_features("asimd asimddp fphp") == ("dotprod", "fp16", "neon")
    assert [(core.number, core.governor, core.mhz, core.max_mhz) for core in found.cores or ()] == [
        (cpu, "ondemand", 1500.0, 2400.0) for cpu in range(4)
    ]
    assert (found.memory, found.available) == (8245184 * 1024, 7340032 * 1024)
    assert found.celsius == {"cpu-thermal": 61.2, "rp1_adc": 49.876}
    assert max(found.celsius.values()) == conditions.celsius(root)
    assert found.throttled == conditions.moment(0, range(4), root, 0).throttled
    assert len(found.throttled) == 2
    assert (found.quota, found.energy, found.battery, found.memory_limit, found.android) == (None,) * 5


@pytest.mark.parametrize("shell", SHELLS)
def test_a_phone(tmp_path: Path, shell: str) -> None:
    root = lay(tmp_path, PHONE)
    found = ask(root, shell)
    assert found.cpu == "Qualcomm SM8250 (2 x Cortex-A77, 6 x Cortex-A55)"
    assert found.features == ("neon",)
    assert found.quota == threads.cpu_quota(root) == 1.5
    assert found.memory_limit == 2147483648
    assert found.threads == threads.threads_for(range(8), root) == 1
    assert found.throttled == ("cpufreq-cpu6 is at 3 of 17",)
    assert found.battery == "Discharging"
    assert found.available is None


@pytest.mark.parametrize("shell", SHELLS)
def test_counters_and_the_first_control_groups(tmp_path: Path, shell: str) -> None:
    root = lay(tmp_path, JETSON)
    found = ask(root, shell)
    assert found.energy == ("RAPL package-0", "hwmon ina3221 VDD_IN")
    assert found.quota == threads.cpu_quota(root) == 2.5
    assert found.memory_limit == 1073741824
    (root / "sys/fs/cgroup/memory/box/memory.limit_in_bytes").unlink()
    assert ask(root, shell).memory_limit is None, "what version 1 writes where there is no limit"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_machine_that_tells_nothing(tmp_path: Path, shell: str) -> None:
    found = ask(tmp_path, shell)
    told = {name for name, value in vars(found).items() if value is not None}
    assert told == {"system", "kernel", "architecture", "disk"}, "what the shell knows without files"
    assert found.threads == 0
    assert found.machine().cpu == "unknown"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_what_is_forbidden_is_not_told(tmp_path: Path) -> None:
    root = lay(tmp_path, JETSON)
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").chmod(0)
    assert ask(root).energy == ("hwmon ina3221 VDD_IN",)


def test_nonsense_is_no_fact(tmp_path: Path) -> None:
    nonsense = {
        "sys/class/thermal/thermal_zone0/type": "cpu",
        "sys/class/thermal/thermal_zone0/temp": "hot",
        "sys/class/thermal/thermal_zone1/temp": 999999,
        "sys/devices/system/cpu/cpu0/cpu_capacity": "much",
        "proc/meminfo": "MemTotal: lots",
        "proc/self/cgroup": "0::/../../etc",
        "sys/fs/cgroup/cpu.max": "one two",
        "proc/cpuinfo": "processor\t: zero\nCPU part\t: none",
    }
    found = ask(lay(tmp_path, nonsense))
    assert (found.celsius, found.memory, found.quota) == (None, None, None)
    assert [core.capacity for core in found.cores or ()] == [None]


@pytest.mark.parametrize(
    ("lines", "throttled"),
    [
        ((), None),
        (("cooling\tfan\t3\t2",), None),
        (("cooling\tProcessor\t3\tmuch",), None),
        (("pi_throttled\tVCHI initialization failed",), None),
        (("cooling\tProcessor\t3\t0",), ()),
        (("pi_throttled\tthrottled=0x0",), ()),
        (("pi_throttled\t0",), ()),
        (("pi_throttled\tthrottled=0x4",), ("the board's firmware says that it throttles",)),
        (("cooling\tcpufreq-cpu0\t\t2", "cooling\tfan\t3\t2"), ("cpufreq-cpu0 is at 2 of 2",)),
    ],
)
def test_who_says_nothing_of_throttling_does_not_say_that_there_is_none(
    lines: tuple[str, ...], throttled: tuple[str, ...] | None
) -> None:
    found = facts.parse("\n".join(["facts\t1", *lines, "end"])).throttled
    assert found == throttled


def test_a_list_of_processors_is_as_long_as_there_are_any() -> None:
    def cores(online: str) -> list[int]:
        return [core.number for core in facts.parse(f"facts\t1\nonline\t{online}\nend\n").cores or ()]

    assert cores("0-1,4,6-7") == [0, 1, 4, 6, 7]
    assert cores("0-8191" + ",0-8191" * 10_000) == [*range(8192)]
    assert cores("3-1,5-99999999,2,1,x") == [2]
    digits = "9" * 5000
    found = facts.parse(
        f"facts\t1\ncore\t{digits}\tcapacity\t{digits}\ncpuinfo\tprocessor\t0\ncpuinfo\tcpu MHz\t{digits}\nend\n"
    )
    assert found.cores == (facts.Core(0),)


def test_threads_are_those_of_the_big_cores(tmp_path: Path) -> None:
    root = lay(tmp_path, {**PHONE, "sys/fs/cgroup/user.slice/cpu.max": "max 100000"})
    assert ask(root).threads == threads.threads_for(range(8), root) == 2


def test_an_emulator_shows_its_host(tmp_path: Path) -> None:
    found = ask(lay(tmp_path, {"proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel", "proc/sys/kernel/arch": "x86_64"}))
    assert found.emulated is None or found.architecture not in ("x86_64", "i686")
    text = "facts\t1\narchitecture\taarch64\nkernel_architecture\tx86_64\nend\n"
    assert facts.parse(text).emulated == "aarch64 is emulated on x86 here"


def test_a_greeting_is_no_fact_and_half_an_answer_is_none() -> None:
    text = "Welcome!\nmemory\tMemTotal\t1\nfacts\t1\r\nsystem\tLinux\r\nend\r\nmodel\tx\nbye\n"
    assert facts.parse(text) == Facts(system="Linux")
    for half in ("", "Welcome!", "facts\t1\nsystem\tLinux\n", "end\nfacts\t1\n"):
        with pytest.raises(ValueError, match="no end"):
            facts.parse(half)


def test_this_machine() -> None:
    found, this = facts.here(), machine.machine()
    assert (found.system, found.architecture) == (os.uname().sysname, os.uname().machine)
    assert len(found.cores or ()) == this.cores
    assert found.features == this.features
    assert found.emulated == this.emulated
