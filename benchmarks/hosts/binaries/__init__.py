"""Benchmark binaries that a user brings for a device without Python: what each takes, and what it prints.

    binary = find("model_benchmark")
    told = binary.parse(output)

A binary is one file of this folder that holds what `Binary` says, and is found by its `NAMES`. Whoever builds one finds the way
in docs/android.md.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from edgellm.bundle import Bundle
from edgellm.errors import UsageError


@dataclass(frozen=True)
class Told:
    """What a binary prints of one prompt and the tokens after it; seconds, and None where it prints nothing of it.

    Attributes:
        prompt: tokens taken in.
        prefill: of the prompt.
        first: to the first token, the prompt included.
        steps: tokens decoded after that.
        decode: of these together.
        load: until it was ready.
        rss: bytes: peak resident of the process, from its start to its end.
    """

    prompt: int
    prefill: float
    first: float | None
    steps: int
    decode: float
    load: float | None = None
    rss: int | None = None


class Binary(Protocol):
    """The module of a binary.

    Attributes:
        NAMES: what its file is called, or begins with.
        ENGINE: whose it is, as lanes call it.
        RUNTIME: whose graph in the bundle it runs.
    """

    NAMES: tuple[str, ...]
    ENGINE: str
    RUNTIME: str

    def files(self, bundle: Bundle, folder: Path, threads: int) -> dict[str, Path]:
        """What has to lie in its working directory, by name; `folder` is for those that are made.

        Raises:
            EdgeError: the bundle does not have it, or it cannot be made of it.
        """
        ...

    def room(self, bundle: Bundle) -> int:
        """Tokens that its context holds."""
        ...

    def arguments(self, prompt: int, steps: int, threads: int) -> list[str]:
        """Its command line, after its name, for one prompt and so many tokens after it."""
        ...

    def parse(self, output: str) -> Told:
        """What it printed.

        Raises:
            ValueError: not what it is known to print.
        """
        ...


def available() -> tuple[str, ...]:
    """Modules of all binaries."""
    return tuple(file.stem for file in sorted(Path(__file__).parent.glob("*.py")) if file.stem != "__init__")


def find(name: str) -> Binary:
    """The binary that a file's name means.

    Raises:
        UsageError: none.
    """
    known = {each: cast("Binary", importlib.import_module(f"{__name__}.{each}")) for each in available()}
    for binary in known.values():
        if name.startswith(binary.NAMES):
            return binary
    fix = f"one of: {', '.join(each for binary in known.values() for each in binary.NAMES)}"
    raise UsageError(f"what '{name}' prints is not known", where="binary", fix=fix)
