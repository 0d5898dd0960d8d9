"""Lanes of one run or several with their figures, and the tables that have a row for each of them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgellm.benchmarks.figures import Figure, figures, warmups
from edgellm.benchmarks.report.document import DOUBT, FAILED, NONE, Cell, Group, Row, Table, clean
from edgellm.benchmarks.report.texts import between, many, number, percent, size
from edgellm.benchmarks.result import Case, Kind, Lane, Run
from edgellm.benchmarks.spread import spread

Found = Mapping[tuple[str, str], Figure]  # by the case's name and the measure


@dataclass(frozen=True)
class Entry:
    """A lane.

    Attributes:
        label: what tells it from the other lanes of the report; the same on every machine.
        look: number of its colour and symbol; the same on every machine.
        found, warm: its figures, and those of the warm-up; none of a lane that failed.
    """

    run: Run
    lane: Lane
    label: str
    look: int
    found: Found
    warm: Found

    @property
    def doubtful(self) -> bool:
        """Whether anything speaks against its figures."""
        return bool(self.lane.doubts or self.run.doubts)

    def figure(self, case: Case | None, measure: str) -> Figure | None:
        """One of its figures; None where it has none."""
        return None if case is None else self.found.get((case.name, measure))


@dataclass(frozen=True)
class View:
    """Runs as a report sees them.

    Attributes:
        machines: the runs' names.
        entries: the lanes of each run.
    """

    runs: tuple[Run, ...]
    machines: tuple[str, ...]
    entries: tuple[tuple[Entry, ...], ...]

    @property
    def all(self) -> tuple[Entry, ...]:
        """Every lane of every run."""
        return tuple(entry for entries in self.entries for entry in entries)

    def cases(self, kind: Kind) -> tuple[Case, ...]:
        """Those of a kind that have figures, by prompt, depth and state; one for each name."""
        cases = [figure.case for entry in self.all for figure in entry.found.values() if figure.case.kind == kind]
        named = {case.name: case for case in reversed(cases)}
        states = ("cold", "warm", "cached")
        return tuple(sorted(named.values(), key=lambda case: (case.prompt, case.depth, states.index(case.state), case.steps)))

    def shallowest(self) -> Case | None:
        """The case of decoding that headlines name."""
        return next(iter(self.cases("decode")), None)

    def longest(self) -> Case | None:
        """The case of prefill that headlines name."""
        return next(reversed(self.cases("prefill")), None)

    def titled(self, title: str, index: int) -> str:
        """A title, with the machine where there are several."""
        return title if len(self.runs) == 1 else f"{title}: {self.machines[index]}"

    def table(self, caption: str, head: Sequence[str], cells: Callable[[Entry], Sequence[Cell]]) -> Table | None:
        """A row for each lane that has at least one cell; None where no lane has."""
        groups = []
        for title, entries in zip(self.group_titles, self.entries, strict=True):
            rows = []
            for entry in entries:
                found = tuple(cells(entry))
                if any(cell != NONE for cell in found):
                    rows.append(Row(entry.label, found, entry.look, (DOUBT,) if entry.doubtful else ()))
            if rows:
                groups.append(Group(title, tuple(rows)))
        return Table(caption, ("lane", *head), tuple(groups)) if groups else None

    @property
    def group_titles(self) -> tuple[str, ...]:
        """Over the rows of each run; "" where there is one run."""
        return self.machines if len(self.runs) > 1 else ("",)


def view(runs: Sequence[Run]) -> View:
    """Name machines and lanes so that they differ, and take the figures out of the runs."""
    labels = _labels([lane for run in runs for lane in run.lanes])
    looks = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    left = iter(labels)
    entries = []
    for run in runs:
        found, warm = _by_lane(figures(run)), _by_lane(warmups(run))
        entries.append(
            tuple(
                Entry(run, lane, label, looks[label], found.get(lane.id, {}), warm.get(lane.id, {}))
                if lane.failed is None
                else Entry(run, lane, label, looks[label], {}, {})
                for lane, label in zip(run.lanes, left, strict=False)
            )
        )
    return View(tuple(runs), _machines(runs), tuple(entries))


def _by_lane(some: Sequence[Figure]) -> dict[str, dict[tuple[str, str], Figure]]:
    found: dict[str, dict[tuple[str, str], Figure]] = {}
    for figure in some:
        if not all(map(math.isfinite, figure.values)):  # of a time next to nothing: no plot has a place for it
            continue
        found.setdefault(figure.lane, {}).setdefault((figure.case.name, figure.measure), figure)
    return found


def _labels(lanes: Sequence[Lane]) -> list[str]:
    """Of each lane what differs between lanes; ids where that does not tell two lanes of different ids apart."""
    ours, theirs = ({lane.model for lane in lanes if bool(lane.runtime) == own} for own in (True, False))
    beside = len(theirs) == 1 and bool(ours - theirs)  # peers beside bundles are all made of their source: it tells nothing
    columns: list[Callable[[Lane], str]] = [
        lambda lane: "" if beside and not lane.runtime else lane.model,
        lambda lane: lane.runtime or lane.engine,
        lambda lane: lane.variant,
        lambda lane: many(lane.threads, "thread"),
    ]
    telling = [column for column in columns if len({column(lane) for lane in lanes}) > 1] or columns[1:2]
    labels = [clean(", ".join(part for part in (column(lane) for column in telling) if part)) for lane in lanes]
    ids: dict[str, set[str]] = {}
    for lane, label in zip(lanes, labels, strict=True):
        ids.setdefault(label, set()).add(lane.id)
    return [
        label if label and len(ids[label]) == 1 else clean(lane.id) or "?" for lane, label in zip(lanes, labels, strict=True)
    ]


def _machines(runs: Sequence[Run]) -> tuple[str, ...]:
    """By what the user calls them and by processor; several runs of one machine by their times, too, then counted."""
    names = [clean(f"{run.host}: " * bool(run.host) + f"{run.machine.cpu}, {many(run.machine.cores, 'core')}") for run in runs]
    counts = Counter(names)
    names = [f"{name}, {clean(run.started)[:16]}" if counts[name] > 1 else name for name, run in zip(names, runs, strict=True)]
    counts, seen = Counter(names), Counter[str]()
    for index, name in enumerate(names):
        seen[name] += 1
        if counts[name] > 1:
            names[index] = f"{name} ({seen[name]})"
    return tuple(names)


# Cells


def cell(figure: Figure | None, scale: float = 1.0) -> Cell:
    """The median, and the lowest and highest of the rounds."""
    if figure is None:
        return NONE
    found = spread([value * scale for value in figure.values])
    write = percent if figure.unit == "" else size if figure.unit == "B" else number
    note = between(write(found.low), write(found.high)) if len(figure.values) > 1 else ""
    return Cell(write(found.median), note)


def failure(entry: Entry) -> Row:
    """The row of a lane without a result."""
    return Row(entry.label, look=entry.look, reason=f"{FAILED}: {clean(entry.lane.failed or '')}")


def with_notes(row: Row, notes: Sequence[str]) -> Row:
    """A row with more under its name."""
    return dataclasses.replace(row, notes=(*row.notes, *notes))
