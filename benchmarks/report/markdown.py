"""A report as Markdown: its tables, without its plots."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from edgellm.benchmarks.report.document import NONE, Block, Cell, Document, Facts, Row, Table, Text

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")


def markdown(document: Document) -> str:
    """GitHub's Markdown; texts from run files are escaped."""
    return "\n".join([*_lines(document), ""])


def _lines(document: Document) -> Iterator[str]:
    yield f"# {escape(document.title)}"
    yield ""
    yield f"edgellm benchmark: {escape('; '.join(document.about))}."
    for doubt in document.doubts:
        yield ""
        yield f"> **⚠ Doubt:** {escape(doubt)}"
    for section in document.sections:
        yield ""
        yield f"## {escape(section.title)}"
        for block in section.blocks:
            yield from _block(block)


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        yield ""
        yield from _table(block)
    elif isinstance(block, Text):
        yield ""
        yield from _code(block.text) if block.code else [escape(block.text)]
    elif isinstance(block, Facts):
        yield ""
        if block.title:
            yield f"**{escape(block.title)}**"
            yield ""
        yield from (f"- {escape(name)}: {escape(value)}" for name, value in block.entries)


def _table(table: Table) -> Iterator[str]:
    yield _row([escape(name) for name in table.head])
    width = len(table.head) - 1
    yield "|" + "|".join(["---", *("---" if column in table.words else "---:" for column in range(1, width + 1))]) + "|"
    for group in table.groups:
        if group.title:
            yield _row([f"**{escape(group.title)}**", *[""] * width])
        for row in group.rows:
            yield _row([_name(row), *_cells(row, width)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _name(row: Row) -> str:
    return " ".join([escape(row.name), *(f"({escape(note)})" for note in row.notes)])


def _cells(row: Row, width: int) -> list[str]:
    if row.reason is not None:
        return [escape(row.reason), *[""] * (width - 1)][:width] or []
    return [_cell(cell) for cell in row.cells]


def _cell(cell: Cell) -> str:
    if cell == NONE or not cell.note:
        return escape(cell.text)
    return f"{escape(cell.text)} ({escape(cell.note)})"


def _code(text: str) -> list[str]:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", text, fence]


def escape(text: str) -> str:
    """A text that Markdown takes for nothing but text; it has one line already."""
    return SPECIAL.sub(r"\\\1", text)
