"""A run as a table in the terminal: a column a lane, a row a measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.cli._options import readable
from edgellm.errors import plain

if TYPE_CHECKING:
    from rich.table import Table

    from edgellm.benchmarks.figures import Figure
    from edgellm.benchmarks.result import Case, Run

# What a terminal has room for, by kind of case; a report has all of it.
SHOWN = {
    "load": ("time",),
    "first token": ("time",),
    "prefill": ("speed", "int8 share", "energy"),
    "decode": ("speed", "p95", "bandwidth share", "energy"),
    "sustained": ("speed",),
    "chain": ("speed",),
}
WORDS = {"p95": ", 95 % of tokens within", "bandwidth share": ", of memory's limit", "int8 share": ", of the 8-bit peak"}


def table(run: Run) -> Table:
    """Medians, and from the lowest to the highest."""
    from rich.markup import escape
    from rich.table import Table

    from edgellm.benchmarks.figures import figures

    found = figures(run)
    lanes = [lane for lane in run.lanes if lane.failed is None]
    made = Table(caption="median (lowest to highest)")
    made.add_column("measure")
    for lane in lanes:
        name = lane.runtime or f"{lane.engine} {lane.variant}"
        made.add_column(f"{escape(plain(lane.model))}\n{escape(plain(name))}, {lane.threads} threads", justify="right")
    cells: dict[tuple[Case, str], dict[str, Figure]] = {}
    for each in found:
        if each.measure in SHOWN[each.case.kind]:
            cells.setdefault((each.case, each.measure), {})[each.lane] = each
    for (case, measure), row in cells.items():
        shown = [_cell(row[lane.id]) if lane.id in row else "-" for lane in lanes]
        made.add_row(case.name + WORDS.get(measure, ", energy" if measure == "energy" else ""), *shown)
    peaks = {
        lane.id: max((each.median for each in found if (each.lane, each.measure) == (lane.id, "rss")), default=None)
        for lane in lanes
    }
    made.add_row("peak RSS", *("-" if (peak := peaks[lane.id]) is None else readable(peak) for lane in lanes))
    made.add_row("files", *(readable(lane.size) for lane in lanes))
    return made


def _cell(figure: Figure) -> str:
    if not figure.unit:
        return f"{figure.median:.0%}"
    median = f"{_number(figure.median)} {figure.unit}"
    values = figure.values
    return median if len(values) == 1 else f"{median} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def remarks(run: Run) -> list[str]:
    """What stands below the table: what speaks against it, and what was left out."""
    lines = [f"not to be quoted: {doubt}" for doubt in run.doubts]
    for lane in run.lanes:
        lines += [f"{lane.id}: failed: {lane.failed}"] if lane.failed else []
        lines += [f"{lane.id}: {doubt}" for doubt in lane.doubts]
    return [*lines, *run.notes]


def packages(run: Run) -> str:
    """The processor, and the versions of what ran on it."""
    found = {f"{name} {version}": None for lane in run.lanes for name, version in lane.versions.items()}
    return ", ".join([run.machine.cpu, *found])
