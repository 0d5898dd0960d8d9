"""An emulated ARM board: a Python of another processor that is started like any other, and starts children like any other.

    why = board.missing()                                   what this machine lacks for it, or None
    pi = board.make(folder, board.KINDS["cortex-a76"], roots.root("arm64"), [site, unpacked])
    pi.run("-c", "import platform; print(platform.machine())").stdout        "aarch64\n"

The board is a folder. `bin/python3` in it is a script of this machine that starts the root's Python under QEMU, and that Python
believes to be `bin/python3`: so `sys.executable` starts children, a shell that has `bin` first in its PATH finds it, and the
folder is a virtual environment, whose site-packages are the folders that were given. No chroot, no binfmt, no privileges.

Files that the board has come before this machine's (/usr, /proc/cpuinfo); the others are this machine's (/sys, /tmp, /home).
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OLD = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm"
ARMV8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
DOTPROD = f"{ARMV8} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
I8MM = f"{DOTPROD} jscvt fcma dcpodp flagm ssbs i8mm bf16"

# What comes from the root. All else has to be as it is here: where /tmp is a link, a program does not find its own files below.
SYSTEM = ("bin", "etc", "lib", "lib32", "lib64", "sbin", "usr")


@dataclass(frozen=True)
class Kind:
    """A class of processors.

    Attributes:
        name: what it is called here.
        architecture: Debian's name.
        emulator: QEMU's program.
        cpu: what it plays.
        features, part: of /proc/cpuinfo, which has to fit: programs believe it, and an instruction that is not there ends them.
    """

    name: str
    architecture: str
    emulator: str
    cpu: str
    features: str
    part: str


# The Raspberry Pi 4 and older, the Pi 5 and phones of 2019, phones and servers from 2021 on.
KINDS = {
    kind.name: kind
    for kind in (
        Kind("cortex-a7", "armhf", "qemu-arm-static", "cortex-a7", OLD, "0xc07"),
        Kind("cortex-a72", "arm64", "qemu-aarch64-static", "cortex-a72", ARMV8, "0xd08"),
        Kind("cortex-a76", "arm64", "qemu-aarch64-static", "cortex-a76", DOTPROD, "0xd0b"),
        Kind("i8mm", "arm64", "qemu-aarch64-static", "max,sve=off,sme=off,pauth-impdef=on", I8MM, "0xd47"),
    )
}


@dataclass(frozen=True)
class Board:
    """A board that was made.

    Attributes:
        folder: everything that is its own.
        python: what starts its Python; `sys.executable` there.
    """

    kind: Kind
    folder: Path
    python: Path

    def environment(self, **more: str) -> dict[str, str]:
        """For a process on it: this one's without what is meant for this machine's Python and loader, its `bin` before all."""
        strange = ("PYTHON", "LD_", "VIRTUAL_ENV", "QEMU_")
        own = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        return {**own, "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", **more}

    def run(
        self, *arguments: object, environment: Mapping[str, str] | None = None, timeout: float = 280
    ) -> subprocess.CompletedProcess[str]:
        """Run its Python with these arguments in its folder, to its end."""
        return subprocess.run(
            [str(self.python), *map(str, arguments)],
            env=self.environment(**(environment or {})),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )


def missing() -> str | None:
    """What this machine lacks to emulate a board, in a sentence; None where nothing is missing."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"boards are emulated on Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
    lacking = [name for name in ("qemu-aarch64-static", "qemu-arm-static", "mmdebstrap") if shutil.which(name) is None]
    return f"no {', '.join(lacking)}: apt-get install qemu-user-static mmdebstrap" if lacking else None


def make(folder: Path, kind: Kind, root: Path, packages: Sequence[Path]) -> Board:
    """Lay a board out in a new folder.

    Args:
        root: files of a system for this architecture with Python in it; see `tests.arm.roots`. It is linked, not copied.
        packages: folders that Python finds modules in, in this order.
    """
    folder = folder.resolve()
    (folder / "root/proc").mkdir(parents=True)
    for entry in (root / name for name in SYSTEM if (root / name).exists()):
        (folder / "root" / entry.name).symlink_to(entry.readlink() if entry.is_symlink() else entry)
    (folder / "root/proc/cpuinfo").write_text(cpuinfo(kind), encoding="ascii")
    binary = next(file for file in sorted((root / "usr/bin").glob("python3.*")) if not file.is_symlink())
    site = folder / "lib" / binary.name / "site-packages"
    site.mkdir(parents=True)
    own = [path for path in (root / "usr/lib/python3/dist-packages",) if path.is_dir()]
    (site / "board.pth").write_text("".join(f"{path}\n" for path in [*packages, *own]), encoding="utf-8")
    # by its path on this machine: QEMU looks for some files (statx) there only
    settings = f"home = {root / 'usr/bin'}\ninclude-system-site-packages = false\n"
    (folder / "pyvenv.cfg").write_text(settings, encoding="utf-8")
    (folder / "bin").mkdir()
    python = folder / "bin/python3"
    emulator = shutil.which(kind.emulator)
    assert emulator is not None, missing()
    command = [
        emulator,
        "-cpu",
        kind.cpu,
        "-L",
        str(folder / "root"),
        "-0",
        str(python),
        str(folder / "root/usr/bin" / binary.name),
    ]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    (folder / "bin/python").symlink_to("python3")
    return Board(kind, folder, python)


def cpuinfo(kind: Kind) -> str:
    """As Linux on such a board shows it, with as many processors as QEMU has here."""
    lines = {
        "BogoMIPS": "108.00",
        "Features": kind.features,
        "CPU implementer": "0x41",
        "CPU architecture": "7" if kind.architecture == "armhf" else "8",
        "CPU variant": "0x1",
        "CPU part": kind.part,
        "CPU revision": "0",
    }
    each = "".join(f"{name}\t: {value}\n" for name, value in lines.items())
    return "".join(f"processor\t: {number}\n{each}\n" for number in range(os.cpu_count() or 1))
