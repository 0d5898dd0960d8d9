"""A run as a table in the terminal: a column a lane, a row a measure; of many lanes the main measures, a row each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgellm.cli._options import readable
from edgellm.errors import plain

if TYPE_CHECKING:
    from rich.table import Table

    from edgellm.benchmarks.figures import Figure
    from edgellm.benchmarks.result import Case, Lane, Run

    Figures = list[Figure]

MOST = 4  # lanes that stand side by side in a terminal of usual width
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
MAIN = (("decode", "speed"), ("prefill", "speed"), ("first token", "time"))


def table(run: Run) -> Table:
    """Medians, and from the lowest to the highest where there is room."""
    from edgellm.benchmarks.figures import figures

    lanes, found = [lane for lane in run.lanes if lane.failed is None], list(figures(run))
    return _by_measure(lanes, found) if len(lanes) <= MOST else _by_lane(lanes, found)


def _by_measure(lanes: list[Lane], found: Figures) -> Table:
    from rich.markup import escape
    from rich.table import Table

    made = Table(caption="median (lowest to highest)")
    made.add_column("measure")
    for lane in lanes:
        runs = plain(lane.device) or f"{lane.threads} threads"
        made.add_column(f"{escape(plain(lane.model))}\n{escape(f'{_name(lane)}, {runs}')}", justify="right")
    cells: dict[tuple[Case, str], dict[str, Figure]] = {}
    for each in found:
        if each.measure in SHOWN[each.case.kind]:
            cells.setdefault((each.case, each.measure), {})[each.lane] = each
    for (case, measure), row in cells.items():
        shown = [_cell(row[lane.id]) if lane.id in row else "-" for lane in lanes]
        made.add_row(case.name + WORDS.get(measure, ", energy" if measure == "energy" else ""), *shown)
    made.add_row("peak RSS", *(_peak(lane, found) for lane in lanes))
    made.add_row("files", *(readable(lane.size) for lane in lanes))
    if any(lane.quality is not None for lane in lanes):
        made.add_row("KL to the source, nats", *map(_kl, lanes))
    return made


def _by_lane(lanes: list[Lane], found: Figures) -> Table:
    from rich.markup import escape
    from rich.table import Table

    made = Table(caption="medians; --report and --json have their spread, and all other measures")
    made.add_column("lane", overflow="fold")
    columns: list[tuple[str, Callable[[Lane], str]]] = [("threads", lambda lane: str(lane.threads))]
    for kind, measure in MAIN:
        cases = {each.case: each for each in found if (each.case.kind, each.measure) == (kind, measure)}
        shown = [case for case in cases if case.state == "warm"]
        ends = [*shown[:1], *shown[-1:]] if kind == "decode" and len(shown) > 1 else shown[-1:]
        columns += [(_head(case, cases[case].unit), _value(found, case, measure)) for case in ends]
    columns += [("peak\nRSS", lambda lane: _peak(lane, found)), ("files", lambda lane: readable(lane.size))]
    if any(lane.quality is not None for lane in lanes):
        columns.append(("KL,\nnats", _kl))
    for head, _ in columns:
        made.add_column(head, justify="right", no_wrap=True)
    several = len({lane.model for lane in lanes if lane.runtime}) > 1
    for lane in lanes:
        name = f"{plain(lane.model)} {_name(lane)}" if several and lane.runtime else _name(lane)
        name += f", {plain(lane.device)}" if lane.device else ""
        made.add_row(escape(name), *(value(lane) for _, value in columns))
    return made


def _name(lane: Lane) -> str:
    return plain(lane.runtime or f"{lane.engine} {lane.variant}")


def _head(case: Case, unit: str) -> str:
    return "\n".join([*case.name.replace(" after", "\nafter").replace("fill ", "fill\n").splitlines(), unit])


def _value(found: Figures, case: Case, measure: str) -> Callable[[Lane], str]:
    values = {each.lane: _number(each.median) for each in found if (each.case, each.measure) == (case, measure)}
    return lambda lane: values.get(lane.id, "-")


def _peak(lane: Lane, found: Figures) -> str:
    from edgellm.benchmarks.figures import peak

    most = peak(found, lane.id)
    return "-" if most is None else readable(most.median)


def _kl(lane: Lane) -> str:
    return "-" if lane.quality is None else f"{lane.quality.kl:.3g}"


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
