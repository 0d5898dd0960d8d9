"""Emulators are told from hardware, and from virtual machines, by what they leave in /proc and /sys."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from edgellm.benchmarks import emulation
from tests.sysfs_tree import lay

PI_5 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1
"""
PC = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD Ryzen 7\nflags\t\t: fpu avx2"
# what qemu-aarch64 8 shows of its own processor; earlier ones show the host's file
QEMU_8 = PI_5.replace("0x41", "0x00").replace("0xd0b", "0x051").replace("108.00", "100.00")


@pytest.mark.parametrize(
    ("architecture", "cpuinfo"),
    [("aarch64", PI_5), ("armv7l", PI_5), ("x86_64", PC), ("i686", PC), ("s390x", ""), ("AMD64", "")],
)
def test_hardware(tmp_path: Path, architecture: str, cpuinfo: str) -> None:
    assert emulation.emulated(architecture, lay(tmp_path, {"proc/cpuinfo": cpuinfo})) is None


@pytest.mark.parametrize(
    ("architecture", "cpuinfo", "kernel", "why"),
    [
        ("aarch64", PC, None, "aarch64 is emulated on x86 here"),
        ("armv7l", PC, None, "armv7l is emulated on x86 here"),
        ("x86_64", PI_5, None, "x86_64 is emulated on arm here"),
        ("aarch64", PI_5, "x86_64", "aarch64 is emulated on x86 here"),  # with a board's cpuinfo laid over the host's
        ("aarch64", QEMU_8, None, "QEMU emulates this processor"),
        ("x86_64", PC.replace("AMD Ryzen 7", "QEMU TCG CPU version 2.5+"), "x86_64", "QEMU emulates this processor"),
    ],
)
def test_emulators(tmp_path: Path, architecture: str, cpuinfo: str, kernel: str | None, why: str) -> None:
    lay(tmp_path, {"proc/cpuinfo": cpuinfo})
    if kernel is not None:
        lay(tmp_path, {"proc/sys/kernel/arch": kernel})
    assert emulation.emulated(architecture, tmp_path) == why


def test_the_registers_of_the_host_show_through(tmp_path: Path) -> None:
    lay(tmp_path, {"sys/devices/system/cpu/cpu0/regs/identification/midr_el1": "0x414fd0b1"})
    assert emulation.emulated("x86_64", tmp_path) == "x86_64 is emulated on arm here"
    assert emulation.emulated("aarch64", tmp_path) is None


def test_a_virtual_machine_is_a_note_and_no_emulation(tmp_path: Path) -> None:
    lay(tmp_path, {"proc/cpuinfo": PC.replace("avx2", "avx2 hypervisor")})
    assert emulation.emulated("x86_64", tmp_path) is None
    assert "virtual machine" in (emulation.virtual(tmp_path) or "")
    assert emulation.virtual(lay(tmp_path, {"proc/cpuinfo": PC})) is None


def test_this_machine_is_what_it_says() -> None:
    """Whoever runs this suite under an emulator knows it."""
    assert emulation.emulated(platform.machine()) is None


@pytest.mark.parametrize(
    ("device", "is_software"),
    [
        ("WebGPU: Google SwiftShader", True),
        ("WebGPU: SwiftShader Device (Subzero)", True),
        ("WebGPU: llvmpipe (LLVM 15.0.6, 256 bits)", True),
        ("WebGPU: Microsoft Basic Render Driver", True),
        ("WebGPU: unknown (software)", True),
        ("WebGPU: qualcomm adreno-7xx", False),
        ("WebGPU: Mali-G715", False),
        ("wasm, 4 threads", False),
        ("", False),
    ],
)
def test_a_gpu_that_is_software(device: str, is_software: bool) -> None:
    assert emulation.software(device) == (f"software plays the GPU ({device})" if is_software else None)
