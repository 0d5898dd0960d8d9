"""What `board` answers, by what was asked. A board is not trusted: what does not fit is no answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """To "look": the Python that answers.

    Attributes:
        executable: its path.
        version, implementation, architecture, libc: as of `wheels.Platform`.
        packages: versions by name of those that were asked for and are there.
    """

    executable: str
    version: str
    implementation: str
    architecture: str
    libc: str | None
    packages: Mapping[str, str]

    def __post_init__(self) -> None:
        """Raises ValueError: they are no version and no architecture."""
        if not re.fullmatch(r"3\.\d{1,3}\.[\w.+-]{1,40}", self.version) or not re.fullmatch(r"\w{1,40}", self.architecture):
            raise ValueError("'version' and 'architecture' are none")


@dataclass(frozen=True)
class Claimed:
    """To "claim".

    Attributes:
        missing: bytes that are there already, of each file that has to be sent.
        free: bytes that may still be written.
    """

    missing: Mapping[str, int]
    free: int


@dataclass(frozen=True)
class Put:
    """To "put": its sha256."""

    put: str


@dataclass(frozen=True)
class Unpacked:
    """To "unpack": its sha256."""

    unpacked: str


@dataclass(frozen=True)
class Placed:
    """To "bundle": its folder."""

    bundle: str


@dataclass(frozen=True)
class News:
    """To "run", one after the other, each with some of these.

    Attributes:
        step: what is done now.
        alive: seconds that it has computed; None where the system does not tell.
        refused, where, fix: an error of ours that ended it.
        ended, memory: its status, and whether the kernel has ended a process for want of memory meanwhile.
        run: bytes of the run's file, which follow.
    """

    step: str | None = None
    alive: float | None = None
    refused: str | None = None
    where: str | None = None
    fix: str | None = None
    ended: int | None = None
    memory: bool = False
    run: int | None = None


@dataclass(frozen=True)
class Refusal:
    """To anything: "full", "busy", "hash" of a file `name`, or "system"; see `board.Refused`."""

    error: str
    free: int = 0
    text: str = ""
    name: str = ""
