"""Speed: by depth and length, to the first token, between tokens, for minutes, and in the warm-up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edgellm.benchmarks.figures import PERCENTILES, Figure
from edgellm.benchmarks.report.charts import Chart, Hills, Line, Lines, Mark, Marks, Point
from edgellm.benchmarks.report.document import NONE, Block, Cell, Section, Table, Text
from edgellm.benchmarks.report.texts import number, pieces
from edgellm.benchmarks.report.view import Entry, View, cell
from edgellm.benchmarks.result import Case, Kind, Sample

LINES = 8  # in one plot
ROWS = 14
BINS = 48
CHUNKS = 60  # points of a line over minutes
OUTSIDE = 1.15  # times the slowest lane's p99: a rare step of a second would leave no room for the others


def decode(view: View) -> Section | None:
    """Decode speed by depth."""
    head = [f"after {case.depth:,}" for case in view.cases("decode")]
    return _by_length(view, "decode", "Decode by depth", "tokens in the cache", head, lambda case: case.depth)


def prefill(view: View) -> Section | None:
    """Prefill speed by length."""
    head = [f"{case.prompt:,} tokens" for case in view.cases("prefill")]
    return _by_length(view, "prefill", "Prefill by length", "tokens of the prompt", head, lambda case: case.prompt)


def _by_length(
    view: View, kind: Kind, title: str, x: str, head: Sequence[str], length: Callable[[Case], int]
) -> Section | None:
    cases = view.cases(kind)
    table = view.table(f"{title}, tokens a second", head, lambda entry: [cell(entry.figure(case, "speed")) for case in cases])
    if table is None:
        return None
    charts: list[Chart] = []
    for index, entries in enumerate(view.entries):
        lines = [Line(entry.label, entry.look, points) for entry in entries if (points := tuple(_points(entry, cases, length)))]
        for some in pieces(lines, LINES) if len(cases) > 1 else ():
            panel = Lines(x, "tokens a second", tuple(some), log=kind == "prefill")
            charts.append(Chart(view.titled(title, index), f"Tokens a second: {_said(some)}.", (panel,), "higher"))
    return Section(kind, title, (*charts, table))


def _points(entry: Entry, cases: Sequence[Case], length: Callable[[Case], int]) -> Iterator[Point]:
    for case in cases:
        figure = entry.figure(case, "speed")
        if figure is not None:
            yield Point(length(case), figure.median, min(figure.values), max(figure.values))


def _said(lines: Sequence[Line]) -> str:
    """Lines in words: the first and the last point of each."""
    return "; ".join(
        f"{line.label} {number(line.points[0].y)} at {number(line.points[0].x)}, "
        f"{number(line.points[-1].y)} at {number(line.points[-1].x)}"
        for line in lines
    )


# To the first token


def first_token(view: View) -> Section | None:
    """Load and first token, cold, warm and with the prompt's beginning in the cache."""
    cases = [*view.cases("load"), *view.cases("first token")]
    head = [case.name for case in cases]
    table = view.table("Milliseconds", head, lambda entry: [cell(entry.figure(case, "time")) for case in cases])
    if table is None:
        return None
    loads = [case for case in cases if case.kind == "load"]
    firsts = [case for case in cases if case.kind == "first token"]
    longest = [case for case in firsts if case.prompt == firsts[-1].prompt]
    charts = [
        *_by_state(view, "Load", loads),
        *_by_state(view, f"First token after {longest[0].prompt:,}" if longest else "", longest),
    ]
    how = (
        "From a prompt to its first token. cold: the files were not in memory, and loading them is part of it. warm: the model "
        "was loaded. cached: so was the prompt, but for its end. Load is from the call to a model that can run."
    )
    return Section("first-token", "Load and first token", (Text(how), *charts, table))


def _by_state(view: View, title: str, these: Sequence[Case]) -> Iterator[Chart]:
    """One thing cold, warm and cached."""
    states = tuple(case.state for case in these)
    for index, entries in enumerate(view.entries):
        rows = []
        for entry in entries:
            found = [(case, entry.figure(case, "time")) for case in these]
            marks = tuple(
                Mark(figure.median, min(figure.values), max(figure.values), these.index(case))
                for case, figure in found
                if figure is not None
            )
            if marks:
                rows.append((entry.label, entry.look, marks))
        for some in pieces(rows, ROWS):
            said = "; ".join(
                f"{label} {', '.join(f'{states[mark.sign]} {number(mark.x)}' for mark in marks)}" for label, _, marks in some
            )
            panel = Marks("milliseconds", tuple(some), states, log=True)
            yield Chart(view.titled(title, index), f"Milliseconds: {said}.", (panel,), "lower")


# Between tokens


def latency(view: View) -> Section | None:
    """How evenly tokens come."""
    cases = view.cases("decode")
    columns = [(case, name) for case in cases for name in PERCENTILES]
    head = [f"{name}, after {case.depth:,}" for case, name in columns]
    table = view.table(
        "Milliseconds between tokens", head, lambda entry: [cell(entry.figure(case, name)) for case, name in columns]
    )
    if table is None:
        return None
    drawn = dict.fromkeys((cases[0], cases[-1]))
    charts = [chart for index in range(len(view.runs)) for case in drawn for chart in _hills(view, index, case)]
    how = (
        "p50, p95 and p99: half of the steps, 95 and 99 in a hundred, took no longer. Each is the median over rounds of what "
        "was found in a round."
    )
    return Section("latency", "Between tokens", (Text(how), *charts, table))


def _hills(view: View, index: int, case: Case) -> Iterator[Chart]:
    found: list[tuple[Entry, list[float], tuple[tuple[str, float], ...]]] = []
    for entry in view.entries[index]:
        steps = [1e3 * step for sample in samples(entry, case) for step in sample.steps]
        there = [(name, entry.figure(case, name)) for name in PERCENTILES]
        lines = tuple((name, figure.median) for name, figure in there if figure is not None)
        if steps and lines:
            found.append((entry, steps, lines))
    for some in pieces(found, ROWS):
        most = OUTSIDE * max(lines[-1][1] for _, _, lines in some)
        least = min(min(steps) for _, steps, _ in some)
        edges = np.linspace(0.92 * least, max(most, 1.1 * least), BINS + 1)
        rows = []
        for entry, steps, lines in some:
            counts, _ = np.histogram(steps, edges)
            rows.append((entry.label, entry.look, tuple(edges.tolist()), tuple(counts.tolist()), lines))
        out = sum(step > edges[-1] for _, steps, _ in some for step in steps)
        said = "; ".join(
            f"{entry.label} {', '.join(f'{name} {number(value)}' for name, value in lines)}" for entry, _, lines in some
        )
        beyond = f" {out} of {sum(len(steps) for _, steps, _ in some)} steps took longer than is drawn." if out else ""
        title = view.titled(f"Time between tokens, {case.name}", index)
        yield Chart(title, f"Milliseconds: {said}.{beyond}", (Hills("milliseconds", tuple(rows)),), "lower")


def samples(entry: Entry, case: Case) -> Iterator[Sample]:
    """Those of a lane's case that count."""
    for sample in entry.run.samples:
        if sample.lane == entry.lane.id and sample.case.name == case.name and sample.round > 0:
            yield sample


# For minutes


def sustained(view: View) -> Section | None:
    """Speed over minutes, with the temperature and the clock meanwhile."""
    cases = view.cases("sustained")
    if not cases:
        return None
    found = [
        [(entry, next(samples(entry, cases[0]))) for entry in entries if entry.figure(cases[0], "speed")]
        for entries in view.entries
    ]
    head = ("minutes", "first tenth, tok/s", "last tenth, tok/s", "kept", "hottest, °C", "clock, MHz")
    sample_of = {id(entry): sample for each in found for entry, sample in each}
    table = view.table("Decoding without a break", head, lambda entry: _kept(entry, sample_of.get(id(entry))))
    if table is None:
        return None
    charts = [
        chart
        for index, each in enumerate(found)
        for some in pieces([(entry, sample) for entry, sample in each if len(sample.steps) > 1], LINES)
        for chart in _over_time(view, index, some)
    ]
    how = "What a machine keeps up when it gets warm: kept is the last tenth's speed over the first tenth's."
    return Section("sustained", "Sustained speed", (Text(how), *charts, table))


def _kept(entry: Entry, sample: Sample | None) -> list[Cell]:
    if sample is None or not sample.steps:
        return [NONE] * 6
    tenth = max(1, len(sample.steps) // 10)
    first, last = (tenth / sum(steps) for steps in (sample.steps[:tenth], sample.steps[-tenth:]))
    heat = [value for _, value, _ in _during(entry, sample) if value is not None]
    clock = [value for _, _, value in _during(entry, sample) if value is not None]
    return [
        Cell(f"{sample.seconds / 60:.1f}"),
        Cell(number(first)),
        Cell(number(last)),
        Cell(f"{100 * last / first:.0f} %"),
        Cell(f"{max(heat):.0f}", f"from {heat[0]:.0f}") if heat else NONE,
        Cell(f"{min(clock):,.0f} to {max(clock):,.0f}") if clock else NONE,
    ]


def _during(entry: Entry, sample: Sample) -> list[tuple[float, float | None, float | None]]:
    """Seconds since the sample began, °C, MHz."""
    moments = [moment for moment in entry.run.moments if sample.at <= moment.at <= sample.at + sample.seconds]
    return [(moment.at - sample.at, moment.celsius, moment.mhz) for moment in moments]


def _over_time(view: View, index: int, some: Sequence[tuple[Entry, Sample]]) -> Iterator[Chart]:
    longest = max(sample.seconds for _, sample in some)
    unit, scale = ("minutes", 60.0) if longest > 150 else ("seconds", 1.0)
    speeds, heats, clocks = [], [], []
    for entry, sample in some:
        speeds.append(Line(entry.label, entry.look, tuple(_chunks(sample, scale))))
        during = _during(entry, sample)
        heats.append(Line(entry.label, entry.look, tuple(Point(at / scale, c) for at, c, _ in during if c is not None)))
        clocks.append(Line(entry.label, entry.look, tuple(Point(at / scale, mhz) for at, _, mhz in during if mhz is not None)))
    panel = Lines(unit, "tokens a second", tuple(speeds), symbols=False)
    yield Chart(view.titled("Speed over time", index), f"Tokens a second over {unit}: {_said(speeds)}.", (panel,), "higher")
    panels, said = [], []
    for name, lines in (("hottest sensor, °C", heats), ("clock, MHz", clocks)):
        there = tuple(line for line in lines if len(line.points) > 1)
        panels += [Lines(unit, name, there, zero=False, symbols=False)] if there else []
        said += [f"{name}: {_said(there)}"] if there else []
    if panels:
        yield Chart(view.titled("Temperature and clock meanwhile", index), f"{'. '.join(said)}.", tuple(panels))


def _chunks(sample: Sample, scale: float) -> Iterator[Point]:
    """Mean speeds of as many steps each; single steps would be a band of noise."""
    ends = list(itertools.accumulate(sample.steps))
    for part in pieces(range(len(ends)), max(1, -(-len(ends) // CHUNKS))):
        start = ends[part[0]] - sample.steps[part[0]]
        end = ends[part[-1]]
        if end > start:
            yield Point((start + end) / 2 / scale, len(part) / (end - start))


# The warm-up


def warm_up(view: View) -> Section | None:
    """The warm-up beside the rounds that count."""
    cases = [case for case in (view.shallowest(), view.longest()) if case is not None]
    head = [f"{case.name}, {what}" for case in cases for what in ("warm-up", "after it")]

    def cells(entry: Entry) -> list[Cell]:
        found: list[Cell] = []
        for case in cases:
            before, after = entry.warm.get((case.name, "speed")), entry.figure(case, "speed")
            found += [_against(before, after), NONE if before is None else cell(after)]
        return found

    table: Table | None = view.table("Tokens a second", head, cells)
    if table is None or not any(entry.warm for entry in view.all):
        return None
    blocks: list[Block] = [Text("Round 0, the warm-up, is in no other figure of this report.")]
    for index, entries in enumerate(view.entries):
        for case in cases[:1]:
            lines = [Line(entry.label, entry.look, rounds) for entry in entries if (rounds := _rounds(entry, case))]
            for some in pieces(lines, LINES):
                panel = Lines("round", "tokens a second", tuple(some), shaded=(0.5, "warm-up"))
                title = view.titled(f"Round by round: {case.name}", index)
                blocks.append(Chart(title, f"Tokens a second, from the warm-up to the last round: {_said(some)}.", (panel,)))
    return Section("warm-up", "The warm-up", (*blocks, table))


def _against(before: Figure | None, after: Figure | None) -> Cell:
    if before is None:
        return NONE
    return Cell(number(before.median), "" if after is None else f"{before.median / after.median:.2f}×")


def _rounds(entry: Entry, case: Case) -> tuple[Point, ...]:
    both = [figure for figure in (entry.warm.get((case.name, "speed")), entry.figure(case, "speed")) if figure is not None]
    return tuple(Point(number, value) for figure in both for number, value in sorted(figure.by_round.items()))
