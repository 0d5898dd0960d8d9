"""Argument types and helpers that several commands share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click

from edgellm.errors import ResourceError

Command = TypeVar("Command", bound=Callable[..., Any])

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Size(click.ParamType[int]):
    """A number of bytes: 600M, 2G, 1.5GiB; units are powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(value).strip(), re.IGNORECASE)
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a size like 600M or 2G", param, ctx)
        return int(float(match[1]) * UNITS[match[2].upper()])


class Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between them: 1,2,4."""

    name = "numbers"

    def __init__(self, least: int) -> None:
        """
        Args:
            least: the smallest that makes sense.
        """
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers, each once."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdigit() and int(part) >= self.least for part in parts):
            self.fail(f"{value!r} is not a list like 128,512 of numbers of {self.least} or more", param, ctx)
        return tuple(dict.fromkeys(int(part) for part in parts))


class Duration(click.ParamType[float]):
    """A time: 90s, 10m, 1h."""

    name = "time"
    seconds: ClassVar = {"s": 1, "m": 60, "h": 3600}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", str(value).strip(), re.IGNORECASE)
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a time like 90s or 10m", param, ctx)
        return float(match[1]) * self.seconds[match[2].lower()]


def names_of(value: str | None) -> tuple[str, ...]:
    """Names with commas between them: onnx,tflite; each once."""
    return tuple(dict.fromkeys(part.strip() for part in (value or "").split(",") if part.strip()))


def runtime_option(default: str) -> Callable[[Command], Command]:
    """--runtime, with what a command does without it."""
    return click.option("--runtime", metavar="R", help=f"Runtime to use, of those that the bundle has; default: {default}.")


def readable(size: float) -> str:
    """Bytes as a person reads them; units are powers of 1000."""
    if size < 1e6:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:,.1f} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB"


def to_json(value: object) -> str:
    """JSON for stdout or a file: characters as they are, no NaN."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def check_target(path: Path) -> None:
    """Refuse a file that cannot be written before the work is done for it.

    Raises:
        ResourceError: it is a folder, or lies in none.
    """
    if path.is_dir() or not path.parent.is_dir():
        reason = "is a folder" if path.is_dir() else "its folder does not exist"
        raise ResourceError(f"cannot write: {reason}", where=path, fix="choose another file")


def write_json(path: Path, value: object) -> None:
    """Write JSON to a file.

    Raises:
        ResourceError: it cannot be written.
    """
    try:
        path.write_text(to_json(value) + "\n", encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write: {error.strerror or error}", where=path, fix="choose another file") from error
