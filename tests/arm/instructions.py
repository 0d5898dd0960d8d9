"""Which kernels ran, by the instructions that an emulator translated.

QEMU translates code when it is about to run it, block by block, and writes each block down once if it is asked to. So an
instruction in its log was reached, and the map of the process's memory says whose it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

# (mask, value) of A64's integer dot products and matrix products of NEON (Arm Architecture Reference Manual, C7.2).
DOTPROD, I8MM = "dotprod", "i8mm"
ENCODINGS = {
    DOTPROD: (
        (0x9FE0FC00, 0x0E809400),  # SDOT, UDOT of vectors
        (0x9FC0F400, 0x0F80E000),  # the same by an element
    ),
    I8MM: (
        (0xDFE0FC00, 0x4E80A400),  # SMMLA, UMMLA
        (0xFFE0FC00, 0x4E80AC00),  # USMMLA
        (0xBFE0FC00, 0x0E809C00),  # USDOT
        (0xBF40F400, 0x0F00F000),  # SUDOT, USDOT by an element
    ),
}
LINE = re.compile(r"^0x([0-9a-f]+):\s+([0-9a-f]{8})\b")
MAP = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+\s+(/\S+)$", re.MULTILINE)


def environment(log: Path) -> dict[str, str]:
    """What makes QEMU write its log."""
    return {"QEMU_LOG": "in_asm", "QEMU_LOG_FILENAME": str(log)}


def kinds(word: int) -> list[str]:
    """Which of the two extensions an instruction word belongs to, if any."""
    return [kind for kind, forms in ENCODINGS.items() if any(word & mask == value for mask, value in forms)]


def found(log: Iterable[str], maps: str) -> tuple[Counter[tuple[str, str]], int]:
    """How many instructions of each extension were translated, by (extension, file that they lie in); and blocks in all.

    Args:
        log: lines of QEMU's log.
        maps: /proc/self/maps of the process.
    """
    spans = [(int(first, 16), int(last, 16), Path(file).name) for first, last, file in MAP.findall(maps)]
    counted: Counter[tuple[str, str]] = Counter()
    blocks = 0
    for line in log:
        blocks += line.startswith("IN:")
        match = LINE.match(line)
        if match is None:
            continue
        for kind in kinds(int(match[2], 16)):
            address = int(match[1], 16)
            counted[kind, next((file for first, last, file in spans if first <= address < last), "")] += 1
    return counted, blocks
