"""Is this machine one? An emulator translates every instruction, so its speed says nothing of the hardware it plays.

A virtual machine is something else: its instructions run on the processor itself.
"""

from __future__ import annotations

from pathlib import Path

from edgellm.benchmarks import sysfs

FAMILIES = {
    "arm": ("aarch64", "arm64", "armv8l", "armv7l", "armv6l", "arm"),
    "x86": ("x86_64", "amd64", "i686", "i586", "i386", "x86"),
    "riscv": ("riscv64", "riscv32", "riscv"),
}
# Fields of /proc/cpuinfo that one family has and the others have not.
FIELDS = {"vendor_id": "x86", "CPU implementer": "arm", "uarch": "riscv", "mmu": "riscv"}
# Files that the kernel makes for its own family. An emulator of programs shows them as they are on its host.
FILES = {f"{sysfs.CPUS}/cpu0/regs/identification/midr_el1": "arm", f"{sysfs.CPUS}/cpu0/microcode": "x86"}
KERNEL = "proc/sys/kernel/arch"
TRANSLATED = "QEMU TCG CPU"  # the model name of QEMU's largest processor where it translates
# What plays a GPU on the processor, as its drivers call themselves: of Chromium, Mesa, Windows; and what a browser calls one.
SOFTWARE = ("swiftshader", "llvmpipe", "lavapipe", "softpipe", "swrast", "basic render", "(software)")
MAX_ARM = ("0x00", "0x051")  # its implementer and part on ARM, which no chip has


def family(architecture: str) -> str | None:
    """ "arm", "x86" or "riscv", of what `platform.machine()` or a kernel says; None of another one."""
    return next((name for name, members in FAMILIES.items() if architecture.lower() in members), None)


def emulated(architecture: str, root: Path = sysfs.ROOT) -> str | None:
    """Why this is no real machine, in a clause; None if nothing says so.

    Args:
        architecture: of the programs, as `platform.machine()` tells it: an emulator of programs answers as what it plays.
    """
    ours = family(architecture)
    fields = _fields(root)
    told = {family(sysfs.text(root / KERNEL) or "")}
    told |= {name for field, name in FIELDS.items() if field in fields}
    told |= {name for file, name in FILES.items() if (root / file).exists()}
    others = sorted(name for name in told - {ours} if name is not None)
    if ours is not None and others:
        return f"{architecture} is emulated on {others[0]} here"
    if TRANSLATED in fields.get("model name", "") or (fields.get("CPU implementer"), fields.get("CPU part")) == MAX_ARM:
        return "QEMU emulates this processor"
    return None


def virtual(root: Path = sysfs.ROOT) -> str | None:
    """A sentence for the notes where this is a virtual machine, as far as the kernel tells (x86, Xen); else None."""
    if "hypervisor" in _fields(root).get("flags", "").split() or sysfs.text(root / "sys/hypervisor/type"):
        return "a virtual machine: its host may take processors and memory bandwidth away, and tells no temperature or clock"
    return None


def software(device: str) -> str | None:
    """Why this device is none, in a clause; None if its name says nothing of that.

    Args:
        device: as `Lane.device` has it: "WebGPU: Google SwiftShader".
    """
    if any(name in device.lower() for name in SOFTWARE):
        return f"software plays the GPU ({device})"
    return None


def _fields(root: Path) -> dict[str, str]:
    """Of the first processor in /proc/cpuinfo, and what stands once."""
    fields: dict[str, str] = {}
    for line in (sysfs.text(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields
