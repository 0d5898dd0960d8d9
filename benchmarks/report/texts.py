"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

X = TypeVar("X")

GB, MB = 1e9, 1e6


def number(value: float) -> str:
    """Three digits: 1,234 and 12.3 and 0.0123."""
    size = abs(value)
    if size >= 99.95 or size == 0:
        return f"{value:,.0f}" if size < 1e9 else f"{value:.3g}"
    if size >= 1:
        return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
    return f"{value:#.3g}"


def percent(share: float) -> str:
    """Of a share; whole per cent from ten on."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def size(count: float) -> str:
    """Bytes; units are powers of 1000."""
    if count >= GB:
        return f"{count / GB:.2f} GB"
    return f"{count / MB:.0f} MB" if count >= 10 * MB else f"{count / MB:.1f} MB"


def error(value: float) -> str:
    """Two digits: of an error of a figure, more would be none."""
    return f"{value:.2g}"


def between(low: str, high: str) -> str:
    """`1 to 2 MB`: what is behind both numbers once."""
    number, _, unit = low.partition(" ")
    return f"{number if unit and high.endswith(f' {unit}') else low} to {high}"


def many(count: int, what: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def joined(texts: Iterable[str], most: int = 4) -> str:
    """With commas, each once; what is past `most` is counted."""
    each = list(dict.fromkeys(text for text in texts if text))
    shown = ", ".join(each[:most])
    return shown if len(each) <= most else f"{shown} and {len(each) - most} more"


def pieces(items: Sequence[X], most: int) -> Iterator[Sequence[X]]:
    """Of about the same length, none longer than `most`."""
    count = -(-len(items) // most)
    for index in range(count):
        yield items[index * len(items) // count : (index + 1) * len(items) // count]
