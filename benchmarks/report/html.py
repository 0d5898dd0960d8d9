"""A report as one HTML file: its style and its plots are in it, and it asks nobody for anything."""

from __future__ import annotations

import itertools
from importlib import resources
from typing import Any

from edgellm.benchmarks.report import draw
from edgellm.benchmarks.report.charts import Chart
from edgellm.benchmarks.report.document import Block, Document, Facts, Section, Table, Text

# Outlines of matplotlib's symbols in a square of 12.
OUTLINES = {
    "o": "M6 1.5a4.5 4.5 0 1 0 0 9a4.5 4.5 0 1 0 0-9z",
    "s": "M2 2h8v8h-8z",
    "^": "M6 1.2l5 9.3h-10z",
    "D": "M6 .6l5.4 5.4-5.4 5.4-5.4-5.4z",
    "v": "M6 10.8l5-9.3h-10z",
    "P": "M4.2 1h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2v-3.6h3.2z",
    "X": "M3.5 .9l2.5 2.5 2.5-2.5 2.6 2.6-2.5 2.5 2.5 2.5-2.6 2.6-2.5-2.5-2.5 2.5-2.6-2.6 2.5-2.5-2.5-2.5z",
    "*": "M6 .6l1.5 3.6 3.9.3-3 2.5.9 3.8-3.3-2-3.3 2 .9-3.8-3-2.5 3.9-.3z",
}
ROOM, TALL = 66, 9  # characters and rows of a table that fits beside a plot


def html(document: Document) -> str:
    """One page; every text from a run file is escaped.

    Raises:
        RuntimeUnavailable: matplotlib is missing.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    numbers = itertools.count(1)

    def svg(chart: Chart) -> Markup:
        return Markup(draw.draw(chart, f"plot{next(numbers)}"))  # noqa: S704  (its texts were escaped where it was written)

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    kinds: dict[str, type[Any]] = {"table": Table, "text": Text, "facts": Facts, "chart": Chart}
    for name, kind in kinds.items():
        environment.tests[name] = lambda block, kind=kind: isinstance(block, kind)
    environment.filters["svg"] = svg
    environment.filters["wide"] = wide
    environment.filters["outline"] = lambda look: OUTLINES[draw.symbol(look)]
    environment.filters["color"] = draw.color
    source = resources.files(__package__ or "").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(document=document)


def wide(section: Section) -> list[bool]:
    """Which blocks of a section take both columns of the page: as few as leave no column half empty."""
    kinds = [type(block) for block in section.blocks]
    odd = kinds.count(Chart) % 2 == 1
    narrow = [block for block in section.blocks if isinstance(block, Table) and _fits(block)]
    beside = next(iter([*narrow, *(block for block in section.blocks if isinstance(block, Text))] if odd else ()), None)
    halves = [isinstance(block, Chart) or block is beside or _one_of(block, kinds) for block in section.blocks]
    return [not half for half in halves]


def _one_of(block: Block, kinds: list[type[Block]]) -> bool:
    """Whether it is one of several lists of facts."""
    return isinstance(block, Facts) and kinds.count(Facts) > 1


def _fits(table: Table) -> bool:
    """Whether it has room beside a plot: about as many characters as its longest cells take, the name's column as it wraps."""
    rows = [row.cells for group in table.groups for row in group.rows if row.cells]
    longest = [max(max(len(cell.text), len(cell.note)) for cell in column) for column in zip(*rows, strict=True)]
    return 20 + sum(3 + length for length in longest) <= ROOM and len(rows) <= TALL
