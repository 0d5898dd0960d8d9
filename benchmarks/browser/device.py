"""What a browser tells of its device, and what it can hold.

Browsers tell little, round it, and may pretend: the name that the user gave is the device's name in a run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edgellm.benchmarks.machine import Machine

MIB, GIB = 1 << 20, 1 << 30
# What a tab could hold before the system ended it or its memory did not grow, as others report; by system.
ROOM = {"Android": GIB, "iOS": 500 * MIB}
DESK = (
    2 * GIB
)  # half of what wasm32 addresses: weights lie in it twice while they are loaded, as a file and as an engine has them
LARGEST = 2 * GIB - 1  # of a file: browsers have no longer buffer
APPLE = re.compile(r"\b(iPhone|iPad|iPod)\b")
NAMES = ("Edg", "OPR", "SamsungBrowser", "Firefox", "FxiOS", "CriOS", "HeadlessChrome", "Chrome", "Version")
MOST_CORES, MOST_MEMORY, MOST_TOLD = 4096, 1 << 16, 1000  # logical processors, GiB, characters: no browser tells more
UNSAFE = re.compile(r"[^\w .,:;()/+'&#-]+")


@dataclass(frozen=True)
class Gpu:
    """What WebGPU says of its adapter.

    Attributes:
        fallback: the browser itself calls it a substitute.
    """

    vendor: str = ""
    architecture: str = ""
    device: str = ""
    description: str = ""
    fallback: bool = False

    @property
    def name(self) -> str:
        """As `Lane.device` has it: what it is called, and that it is software where only the browser says so."""
        words = self.description or self.device or " ".join(filter(None, (self.vendor, self.architecture))) or "unknown"
        return clean(words) + (" (software)" if self.fallback else "")


@dataclass(frozen=True)
class Hello:
    """The first message of a page.

    Attributes:
        name: that the user gave the device.
        agent: the user agent's line.
        platform, version, architecture, bits, model: of client hints, where the browser has them.
        cores: logical processors, as the browser tells.
        memory: GiB, rounded and cut off by the browser; None where it does not tell.
        isolated: whether wasm may have threads, `relaxed` whether it has relaxed SIMD.
        touch: points of its screen that can be touched: an iPad says that it is a Mac.
        gpu: None without WebGPU.
        page: a random text of the page, by which a hello that arrives twice is known.
    """

    name: str
    agent: str
    platform: str = ""
    version: str = ""
    architecture: str = ""
    bits: str = ""
    model: str = ""
    cores: int = 1
    memory: float | None = None
    isolated: bool = False
    relaxed: bool = False
    touch: int = 0
    gpu: Gpu | None = None
    page: str = ""

    def __post_init__(self) -> None:
        """Refuse by ValueError what no browser tells."""
        told = (self.name, self.agent, self.page, self.platform, self.version, self.architecture, self.bits, self.model)
        if any(len(text) > MOST_TOLD for text in told):
            raise ValueError(f"a text of more than {MOST_TOLD} characters")
        if not 1 <= self.cores <= MOST_CORES or (self.memory is not None and not 0 < self.memory <= MOST_MEMORY):
            raise ValueError("processors or a memory that no device has")

    @property
    def system(self) -> Literal["Android", "iOS", "other"]:
        """Which limits it has."""
        if APPLE.search(self.agent) or ("Macintosh" in self.agent and self.touch > 1):
            return "iOS"
        return "Android" if self.platform == "Android" or "Android" in self.agent else "other"

    @property
    def browser(self) -> str:
        """Name and version, as far as the user agent's line tells: "Chrome 143.0.0.0"."""
        for name in NAMES:
            found = re.search(rf"\b{name}/([\d.]+)", self.agent)
            if found is not None:
                return f"{ {'Version': 'Safari', 'Edg': 'Edge', 'OPR': 'Opera'}.get(name, name) } {found[1]}"
        return "a browser"

    @property
    def threads(self) -> int:
        """That wasm may have."""
        return max(1, min(self.cores, 64)) if self.isolated else 1

    def machine(self) -> Machine:
        """As a run has it."""
        system = " ".join(filter(None, (self.platform, self.version))) or {"other": "unknown"}.get(self.system, self.system)
        return Machine(
            system=clean(system),
            architecture=clean(f"{self.architecture} {self.bits}".strip()) or "unknown",
            cpu="unknown: a browser does not tell",
            features=None,
            cores=self.cores,
            memory=None if self.memory is None else int(self.memory * GIB),
            python=f"none: {self.browser}",
            model=clean(self.model) or None,
        )


def too_large(system: str, weights: int, largest: int, cache: int) -> str | None:
    """Why a browser on this system cannot hold a model, before anything is sent to it; None where it may.

    Args:
        weights: bytes of the graph's files, `largest` of the largest of them.
        cache: bytes of KV cache of the longest case.
    """
    if largest > LARGEST:
        return f"a file of {largest / GIB:.1f} GiB: no browser has a buffer of more than 2 GiB"
    room = ROOM.get(system, DESK)
    if weights + cache <= room:
        return None
    what = f"{weights / MIB:,.0f} MiB of weights and {cache / MIB:,.0f} MiB of KV cache"
    where = f"a browser on {system}" if system in ROOM else "a browser"
    return f"{what}: {where} holds about {room / MIB:,.0f} MiB"


def clean(text: str, most: int = 80) -> str:
    """What a browser said, fit for tables: one line of plain characters, at most so many."""
    return " ".join(UNSAFE.sub(" ", text).split())[:most]
