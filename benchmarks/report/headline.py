"""The beginning of a report: what speaks against it, the main figures, which lanes differ, devices side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgellm.benchmarks.figures import Figure, peak
from edgellm.benchmarks.report.charts import Bar, Bars, Chart, Mark, Marks, Side
from edgellm.benchmarks.report.document import NONE, Block, Cell, Group, Row, Section, Table, Text, clean
from edgellm.benchmarks.report.texts import error, joined, many, number, percent, pieces, size
from edgellm.benchmarks.report.view import Entry, View, cell, failure, with_notes
from edgellm.benchmarks.result import Case
from edgellm.benchmarks.spread import SURE, Ratio, ratio

ROWS = 14  # in one plot
DEVICES = 6  # in one plot: as many symbols as are told apart
MEDIANS = "medians over the rounds, with the lowest and the highest; the warm-up is not among them"


def doubts(view: View) -> Iterator[str]:
    """Every doubt of runs and lanes, with whose it is."""
    for index, run in enumerate(view.runs):
        where = f"{view.machines[index]}: " if len(view.runs) > 1 else ""
        if not run.complete:
            yield f"{where}the run was interrupted; what follows is of the rounds that were finished"
        for doubt in run.doubts:
            yield f"{where}{clean(doubt)}"
        found: dict[str, list[str]] = {}
        for entry in view.entries[index]:
            for doubt in entry.lane.doubts:
                found.setdefault(doubt, []).append(entry.label)
        for doubt, labels in found.items():
            yield f"{where}{'; '.join(labels)}: {clean(doubt)}"
        for entry in view.entries[index]:
            if entry.lane.failed is not None:
                yield f"{where}{entry.label} has no result: {clean(entry.lane.failed)}"


def headline(view: View) -> Section:
    """A row for each lane, failed ones among them."""
    shallow, longest = view.shallowest(), view.longest()
    first = next((case for case in reversed(view.cases("first token")) if case.state == "warm"), None)
    load = next((case for case in view.cases("load") if case.state == "warm"), None) or next(iter(view.cases("load")), None)
    wanted = (
        ("" if shallow is None else f"{shallow.name}, tok/s", lambda entry: cell(entry.figure(shallow, "speed"))),
        ("" if longest is None else f"{longest.name}, tok/s", lambda entry: cell(entry.figure(longest, "speed"))),
        ("" if first is None else f"{first.name}, ms", lambda entry: cell(entry.figure(first, "time"))),
        ("" if load is None else f"{load.name}, ms", lambda entry: cell(entry.figure(load, "time"))),
        ("peak RSS", lambda entry: cell(_peak(view, entry))),
        ("file", lambda entry: Cell(size(entry.lane.size))),
        ("KL, nats", _kl),
        ("of the bandwidth", lambda entry: cell(entry.figure(shallow, "bandwidth share"))),
    )
    columns = [(head, make, [make(entry) for entry in view.all]) for head, make in wanted]
    columns = [column for column in columns if column[0] and any(found != NONE for found in column[2])]
    groups = []
    for title, entries in zip(view.group_titles, view.entries, strict=True):
        rows = []
        for entry in entries:
            if entry.lane.failed is not None:
                rows.append(failure(entry))
                continue
            row = Row(entry.label, tuple(make(entry) for _, make, _ in columns), entry.look)
            if entry.run.machine.emulated is not None:
                rows.append(with_notes(row, [_emulated(entry)]))
                continue
            why = [*entry.lane.doubts, *(["its run"] if entry.run.doubts and not entry.lane.doubts else [])]
            rows.append(with_notes(row, [f"⚠ doubtful: {clean(joined(why, 2))}"] if why else []))
        groups.append(Group(title, tuple(rows)))
    table = Table(MEDIANS, ("lane", *(head for head, _, _ in columns)), tuple(groups))
    blocks: list[Block] = [table]
    if len(view.runs) == 1:  # several stand side by side right below
        charts = [_bars(view.entries[0], case) for case in (shallow, longest) if case is not None]
        blocks += [chart for chart in charts if chart is not None]
    return Section("headline", "Main figures", tuple(blocks))


def _emulated(entry: Entry) -> str:
    agreed = entry.lane.agreement
    checked = "" if agreed is None else f", {percent(agreed)} of its steps confirmed"
    return f"⚠ emulated: its output counts{checked}, and its times do not"


def _peak(view: View, entry: Entry) -> Figure | None:
    beside = [figure for each in view.all if each.run is entry.run for figure in each.found.values()]
    return peak(beside, entry.lane.id)


def _kl(entry: Entry) -> Cell:
    quality = entry.lane.quality
    return NONE if quality is None else Cell(number(quality.kl), f"± {error(quality.kl_error)}")


def _bars(entries: Sequence[Entry], case: Case) -> Chart | None:
    bars = []
    for entry in entries:
        figure = entry.figure(case, "speed")
        if figure is not None:
            bars.append(Bar(entry.label, entry.look, (("", figure.median),), min(figure.values), max(figure.values)))
    if not bars:
        return None
    said = "; ".join(f"{bar.label} {number(bar.parts[0][1])}" for bar in bars)
    return Chart(
        f"Speed of {case.name}", f"Tokens a second: {said}.", (Bars("tokens a second", tuple(bars[: 2 * ROWS])),), "higher"
    )


# Which lanes differ


@dataclass(frozen=True)
class Pair:
    """Two lanes of one run: how `new` does against `old`."""

    old: Entry
    new: Entry

    @property
    def name(self) -> str:
        """As rows and plots call it: what differs, and in brackets what does not."""
        new, old = self.new.label.split(", "), self.old.label.split(", ")
        if len(new) != len(old):
            return f"{self.new.label} / {self.old.label}"
        both = [a for a, b in zip(new, old, strict=True) if a == b]
        first, second = (", ".join(part for part in parts if part not in both) for parts in (new, old))
        return f"{first} / {second}" + (f" ({', '.join(both)})" if both else "")

    def ratio(self, case: Case) -> Ratio | None:
        """Of speeds; None where one of them has none."""
        old, new = self.old.figure(case, "speed"), self.new.figure(case, "speed")
        return None if old is None or new is None else ratio(old, new, self.new.run.settings.seed)


def pairs(entries: Sequence[Entry]) -> list[Pair]:
    """Each lane against the first of the same model and threads, and each lane against itself with the fewest threads."""
    there = [entry for entry in entries if entry.found]
    first: dict[object, Entry] = {}
    least: dict[object, Entry] = {}
    for entry in there:
        first.setdefault((entry.lane.model, entry.lane.threads), entry)
        least[_same(entry)] = min(least.get(_same(entry), entry), entry, key=lambda each: each.lane.threads)
    across = [Pair(first[entry.lane.model, entry.lane.threads], entry) for entry in there]
    return [pair for pair in [*across, *(Pair(least[_same(entry)], entry) for entry in there)] if pair.old is not pair.new]


def _same(entry: Entry) -> tuple[str, ...]:
    lane = entry.lane
    return lane.engine, lane.model, lane.variant, lane.runtime, lane.digest, lane.device.partition(",")[0]


def ratios(view: View) -> Section | None:
    """Ratios of speed with their intervals; a verdict where the interval clears 1, and nowhere else."""
    decodes, prefill = view.cases("decode"), view.longest()
    cases = [*decodes[:1], *(decodes[-1:] if len(decodes) > 1 else ()), *([prefill] if prefill is not None else [])]
    groups, charts = [], []
    for index, entries in enumerate(view.entries):
        rows, drawn = [], []
        for pair in pairs(entries):
            found = [pair.ratio(case) for case in cases]
            if all(each is None for each in found):
                continue
            mark = ("⚠ doubtful",) if pair.old.doubtful or pair.new.doubtful else ()
            rows.append(Row(pair.name, tuple(map(_verdict, found)), pair.new.look, mark))
            marks = [Mark(each.value, each.low, each.high, sign) for sign, each in enumerate(found) if each is not None]
            drawn.append((pair.name, pair.new.look, tuple(marks)))
        if rows:
            groups.append(Group(view.group_titles[index], tuple(rows)))
        for some in pieces(drawn, ROWS):
            said = "; ".join(f"{name} {number(marks[0].x)}" for name, _, marks in some)
            title = view.titled("How many times as fast", index)
            axis = Marks("times as fast", tuple(some), tuple(case.name for case in cases), middle=1.0)
            charts.append(Chart(title, f"Ratios of speed with {SURE} intervals: {said}.", (axis,)))
    if not groups:
        return None
    how = (
        f"Speed of the first lane over that of the second, round by round, and the {SURE} interval of the median ratio. Above "
        "1 the first is faster. There is a verdict only where the interval clears 1."
    )
    table = Table("Ratios", ("first / second", *(case.name for case in cases)), tuple(groups))
    return Section("ratios", "Which lanes differ", (Text(how), *charts, table))


def _verdict(found: Ratio | None) -> Cell:
    if found is None:
        return NONE
    if found.low is None or found.high is None:
        return Cell(f"{found.value:.2f}×", "too few rounds for an interval")
    said = f": {found.verdict}" if found.verdict in ("faster", "slower") else ": not told apart"
    return Cell(f"{found.value:.2f}×", f"{found.low:.2f} to {found.high:.2f}{said}")


# Devices side by side


def devices(view: View) -> Section | None:
    """A column for each run, a row for each lane that any of them has; None of one run."""
    if len(view.runs) < 2:
        return None
    labels = list(dict.fromkeys(entry.label for entry in view.all))
    looks = {entry.label: entry.look for entry in view.all}
    columns = [{entry.label: entry for entry in entries} for entries in view.entries]
    first = next((case for case in reversed(view.cases("first token")) if case.state == "warm"), None)
    ends: list[Case | None] = [*dict.fromkeys((*view.cases("decode")[:1], *view.cases("decode")[-1:])), view.longest()]
    wanted = [*((case, "speed", "tok/s") for case in ends), (first, "time", "ms")]
    groups, charts = [], []
    for case, measure, unit in wanted:
        found = {label: [_of(column.get(label), case, measure) for column in columns] for label in labels}
        rows = [
            Row(label, tuple(map(_device, each)), looks[label])
            for label, each in found.items()
            if any(figure is not None for _, figure in each)
        ]
        if case is None or not rows:
            continue
        groups.append(Group(f"{case.name}, {unit}", tuple(rows)))
        drawn = [
            (label, looks[label], tuple(_mark(figure, sign) for sign, (_, figure) in enumerate(each) if figure is not None))
            for label, each in found.items()
        ]
        for some in pieces([row for row in drawn if row[2]], ROWS) if len(columns) <= DEVICES else ():
            said = "; ".join(f"{label} {' and '.join(number(mark.x) for mark in marks)}" for label, _, marks in some)
            axis = Marks(unit, tuple(some), view.machines, log=True)
            side: Side = "higher" if measure == "speed" else "lower"
            charts.append(Chart(f"By device: {case.name}", f"{case.name} in {unit}: {said}.", (axis,), side))
    if not groups:
        return None
    notes = [Text(f"⚠ {label} is not the same file on every device: digests differ.") for label in _unlike(view)]
    table = Table("Devices side by side", ("lane", *view.machines), tuple(groups))
    return Section("devices", f"{many(len(view.runs), 'device')} side by side", (*notes, table, *charts))


def _of(entry: Entry | None, case: Case | None, measure: str) -> tuple[Entry | None, Figure | None]:
    return entry, None if entry is None else entry.figure(case, measure)


def _device(found: tuple[Entry | None, Figure | None]) -> Cell:
    entry, figure = found
    made = cell(figure)
    return Cell(made.text, f"{made.note} ⚠ doubtful".strip()) if entry is not None and entry.doubtful and figure else made


def _mark(figure: Figure, sign: int) -> Mark:
    return Mark(figure.median, min(figure.values), max(figure.values), sign)


def _unlike(view: View) -> list[str]:
    digests: dict[str, set[str]] = {}
    for entry in view.all:
        digests.setdefault(entry.label, set()).add(entry.lane.digest)
    return [label for label, found in digests.items() if len(found) > 1]
