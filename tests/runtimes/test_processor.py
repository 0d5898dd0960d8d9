"""What a board's processor can do, from its /proc/cpuinfo."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.runtimes.processor import lacks_atomics

PI_4 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU part\t: 0xd08\n"
PI_5 = PI_4.replace("crc32", "aes pmull sha1 sha2 crc32 atomics fphp asimdhp").replace("0xd08", "0xd0b")


@pytest.mark.parametrize(
    ("architecture", "cpuinfo", "lacking"),
    [
        ("aarch64", PI_4, True),
        ("aarch64", PI_5, False),
        ("aarch64", PI_5 + PI_4, True),  # a thread may run on either
        ("armv7l", PI_4, False),  # another library, which is built for it
        ("x86_64", "flags\t\t: fpu avx2\n", False),
        ("aarch64", "", False),
        ("aarch64", None, False),
    ],
)
def test_atomics(tmp_path: Path, architecture: str, cpuinfo: str | None, lacking: bool) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="ascii")
    assert lacks_atomics(architecture, tmp_path / "cpuinfo") is lacking
