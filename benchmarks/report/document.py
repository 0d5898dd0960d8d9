"""What a report holds, before it is HTML or Markdown: both are drawn from this one description.

Texts come from run files, which anybody may have written: they are plain here, and each writer escapes them its own way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from edgellm.benchmarks.report.charts import Chart
from edgellm.errors import plain

BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")  # they reorder what stands around them
DOUBT = "⚠ doubtful"
FAILED = "✗ failed"


@dataclass(frozen=True)
class Cell:
    """A value, and smaller what belongs to it: its spread, say."""

    text: str
    note: str = ""


NONE = Cell("–")


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        look: which symbol stands before its name: the one that it has in the plots; None for none.
        notes: what stands under its name: doubts, an id.
        reason: why it has no cells.
    """

    name: str
    cells: tuple[Cell, ...] = ()
    look: int | None = None
    notes: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Group:
    """Rows that belong together, such as those of one machine; "" where there is one group only."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Attributes:
        head: names of columns, that of the row names first.
        words: indices of columns that hold words and no numbers.
    """

    caption: str
    head: tuple[str, ...]
    groups: tuple[Group, ...]
    words: tuple[int, ...] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph; as `code` it stands as it is."""

    text: str
    code: bool = False


@dataclass(frozen=True)
class Facts:
    """Names with what they are, under a title."""

    title: str
    entries: tuple[tuple[str, str], ...]


Block = Table | Text | Facts | Chart


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        about: under the title: what and where.
        doubts: what speaks against its figures; the first thing that a reader meets.
    """

    title: str
    about: tuple[str, ...]
    doubts: tuple[str, ...]
    sections: tuple[Section, ...]

    def charts(self) -> Iterator[Chart]:
        """Every plot, in order."""
        for section in self.sections:
            yield from (block for block in section.blocks if isinstance(block, Chart))


def clean(text: str) -> str:
    """A text from a file in one line, without characters that XML has not, or that turn around what stands behind them."""
    safe = plain(" ".join(text.split()))
    return BIDI.sub(lambda found: ascii(found[0])[1:-1], safe)


def short(text: str, most: int) -> str:
    """At most so many characters: the middle goes, because names differ at their ends."""
    if len(text) <= most:
        return text
    front = (most - 1) // 2
    return f"{text[:front]}…{text[len(text) - (most - 1 - front) :]}"
