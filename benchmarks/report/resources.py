"""What lanes take and how near they come: memory, processors, energy, parts of the chain, the machine's limit, quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from edgellm.benchmarks.figures import PARTS, best_probe
from edgellm.benchmarks.report.charts import Bar, Bars, Chart, Line, Lines, Point
from edgellm.benchmarks.report.document import NONE, Cell, Group, Row, Section, Table, Text, clean
from edgellm.benchmarks.report.texts import GB, MB, error, joined, many, number, percent, pieces, size
from edgellm.benchmarks.report.view import Entry, View, cell
from edgellm.benchmarks.result import Case, Run

LINES = 8
ROWS = 14
CLOUD = 10  # named points in one plot that are no crowd
POINTS = 250  # of a line over the run


def memory(view: View) -> Section | None:
    """Peak RSS, and PSS, by what ran."""
    cases = _phases(view)
    columns = [(case, measure) for case in cases for measure in ("rss", "pss")]
    columns = [(case, of) for case, of in columns if any(entry.figure(case, of) for entry in view.all)]
    head = [f"{case.name}, {measure.upper()}" for case, measure in columns]
    table = view.table("Memory by phase", head, lambda entry: [cell(entry.figure(case, of)) for case, of in columns])
    if table is None:
        return None
    phases = [case for case, of in columns if of == "rss"]
    charts = []
    for index, entries in enumerate(view.entries):
        lines = [line for entry in entries if (line := _peaks(entry, phases)).points]
        for some in pieces(lines, LINES) if len(phases) > 1 else ():
            said = "; ".join(f"{line.label} {number(max(point.y for point in line.points))} at most" for line in some)
            panel = Lines("", "peak RSS, MB", tuple(some), names=tuple(case.kind for case in phases))
            charts.append(Chart(view.titled("Memory by phase", index), f"Megabytes: {said}.", (panel,), "lower"))
    how = (
        "RSS: the most that was in memory during the phase, pages of the model's file among them, which the system may drop "
        "when others need room. PSS: at its end, what is shared counted by share."
    )
    return Section("memory", "Memory", (Text(how), *charts, table))


def _phases(view: View) -> list[Case]:
    """The largest case of each kind, in the order of a program's life."""
    return [
        *view.cases("load")[-1:],
        *view.cases("prefill")[-1:],
        *view.cases("decode")[-1:],
        *[case for case in view.cases("first token") if case.state == "warm"][-1:],
        *view.cases("chain")[-1:],
        *view.cases("sustained")[-1:],
    ]


def _peaks(entry: Entry, phases: Sequence[Case]) -> Line:
    points = [
        Point(x, figure.median / MB, min(figure.values) / MB, max(figure.values) / MB)
        for x, case in enumerate(phases)
        if (figure := entry.figure(case, "rss")) is not None
    ]
    return Line(entry.label, entry.look, tuple(points))


def chain(view: View) -> Section | None:
    """A user's text, from its template to its last character, by part."""
    cases = view.cases("chain")[-1:]
    if not cases:
        return None
    case = cases[0]
    parts = [part for part in PARTS if any(entry.figure(case, part) for entry in view.all)]
    head = ["in all", *parts, "around the model"]

    def cells(entry: Entry) -> list[Cell]:
        found = [entry.figure(case, part) for part in parts]
        around = [figure.median for figure in found if figure is not None and figure.measure not in ("prefill", "decode")]
        every = sum(figure.median for figure in found if figure is not None)
        return [
            cell(entry.figure(case, "time")),
            *map(cell, found),
            Cell(percent(sum(around) / every)) if around and every else NONE,
        ]

    table = view.table("Milliseconds by part", head, cells)
    if table is None:
        return None
    charts = []
    for index, entries in enumerate(view.entries):
        bars = [
            Bar(entry.label, entry.look, found)
            for entry in entries
            if (found := tuple((part, figure.median) for part in parts if (figure := entry.figure(case, part)) is not None))
        ]
        for some in pieces(bars, ROWS):
            said = "; ".join(f"{bar.label} {', '.join(f'{part} {number(ms)}' for part, ms in bar.parts)}" for bar in some)
            title = view.titled(f"Where the time goes, {case.name}", index)
            charts.append(Chart(title, f"Milliseconds: {said}.", (Bars("milliseconds", tuple(some), "ms"),), "lower"))
    steps = f" and {many(case.steps, 'token')} out" if case.steps else ""
    how = (
        f"The way of a user's text: template, tokenizer, prefill, then sampling, decoding and text out; {case.prompt:,} tokens "
        f"in{steps}. Around the model is what is neither prefill nor decode."
    )
    return Section("chain", "The whole chain", (Text(how), *charts, table))


def limit(view: View) -> Section | None:
    """How much of what the machine can do a lane makes use of."""
    decodes, prefills = view.cases("decode"), view.cases("prefill")
    head = ["memory gives, GB/s", "a token reads", *(f"{case.name}, of the bandwidth" for case in decodes)]
    head += ["int8 gives, G/s", *(f"{case.name}, of int8" for case in prefills)]

    def cells(entry: Entry) -> list[Cell]:
        shares = [cell(entry.figure(case, "bandwidth share")) for case in decodes]
        others = [cell(entry.figure(case, "int8 share")) for case in prefills]
        if all(found == NONE for found in (*shares, *others)):
            return []
        lane = entry.lane
        reads = NONE if lane.weight_bytes is None else Cell(size(lane.weight_bytes))
        bandwidth, int8 = (best_probe(entry.run, what, lane.threads) for what in ("bandwidth", "int8"))
        return [
            NONE if bandwidth is None else Cell(number(bandwidth / GB)),
            reads,
            *shares,
            NONE if int8 is None else Cell(number(int8 / GB)),
            *others,
        ]

    table = view.table("Share of the limit", head, cells)
    if table is None:
        return None
    charts = []
    wanted = (
        (view.shallowest(), "bandwidth share", "Decode against memory", "of the bandwidth", "all that memory gives"),
        (view.longest(), "int8 share", "Prefill against int8", "of the multiply-adds", "all that int8 gives"),
    )
    for case, measure, title, x, name in wanted:
        for index, entries in enumerate(view.entries):
            found = [(entry, figure) for entry in entries if (figure := entry.figure(case, measure)) is not None]
            for some in pieces(found, ROWS):
                bars = [
                    Bar(entry.label, entry.look, ((x, figure.median),), min(figure.values), max(figure.values))
                    for entry, figure in some
                ]
                said = "; ".join(f"{bar.label} {percent(bar.parts[0][1])}" for bar in bars)
                panel = Bars(x, tuple(bars), percent=True, limit=(1.0, name))
                where = "" if case is None else f", {case.name}"
                charts.append(Chart(view.titled(f"{title}{where}", index), f"{x}: {said}.", (panel,), "higher"))
    over = [
        Text(f"⚠ {entry.label}: more than memory gives, because its weights stay in the processor's cache.")
        for entry in view.all
        if any(figure.unit == "" and figure.median > 1 for figure in entry.found.values())
    ]
    how = (
        "The limit is measured in the same run with the same threads: bytes a second from memory, multiply-adds of 8-bit "
        "integers a second. Decode reads all weights and the cache for each token, prefill multiplies: the share says how much "
        "faster a better kernel could be at most."
    )
    return Section("limit", "Share of the limit", (Text(how), *over, *charts, table))


def quality(view: View) -> Section | None:
    """How close a lane is to its source, beside how fast it is."""
    case = view.shallowest()
    head = ["KL, nats", "top-1", "tokens confirmed", "bits", "file", *([] if case is None else [f"{case.name}, tok/s"])]

    def cells(entry: Entry) -> list[Cell]:
        lane, found = entry.lane, entry.lane.quality
        if lane.failed is not None or (found is None and lane.agreement is None):
            return []
        return [
            NONE if found is None else Cell(number(found.kl), f"± {error(found.kl_error)}"),
            NONE if found is None else Cell(f"{found.top1:.3f}"),
            NONE if lane.agreement is None else Cell(f"{100 * lane.agreement:.1f} %"),
            NONE if lane.bits is None else Cell(f"{lane.bits:.2f}"),
            Cell(size(lane.size)),
            *([] if case is None else [cell(entry.figure(case, "speed"))]),
        ]

    table = view.table("Quality and speed", head, cells)
    if table is None:
        return None
    charts = [chart for index, entries in enumerate(view.entries) for chart in _clouds(view, index, entries, case)]
    how = (
        "KL is how far a lane's next-token distributions are from the source's at float32, mean over positions with its "
        "standard error; top-1 how often both find the same token likeliest. Tokens confirmed: those decoded in this run that "
        "one pass over the same tokens finds likeliest, too."
    )
    texts = {entry.lane.quality.text for entry in view.all if entry.lane.quality is not None}
    notes = [Text("⚠ KL was measured on different texts and does not compare.")] if len(texts) > 1 else []
    return Section("quality", "Quality against speed", (Text(how), *notes, *charts, table))


def _clouds(view: View, index: int, entries: Sequence[Entry], case: Case | None) -> Iterator[Chart]:
    """Lanes by KL and speed; those of each number of threads by themselves where all would be a crowd."""
    placed = [(entry, line) for entry in entries for line in _place(entry, case)]
    threads: list[int | None] = [None]
    if len(placed) > CLOUD:
        threads = list(dict.fromkeys(entry.lane.threads for entry, _ in placed))
    for count in threads:
        said = "" if count is None else f", {many(count, 'thread')}"
        these = [line for entry, line in placed if count in (None, entry.lane.threads)]
        lines = [dataclasses.replace(line, label=line.label.removesuffix(said) or line.label) for line in these]
        for some in pieces(lines, 2 * CLOUD):
            about = "; ".join(f"{line.label} {number(line.points[0].x)}, {number(line.points[0].y)}" for line in some)
            panel = Lines("KL to the source, nats (closer is left)", "tokens a second", tuple(some), joined=False, log=True)
            title = view.titled(f"Quality against speed{said}", index)
            yield Chart(title, f"KL to the source in nats, and tokens a second: {about}.", (panel,), "higher")


def _place(entry: Entry, case: Case | None) -> Iterator[Line]:
    figure, found = entry.figure(case, "speed"), entry.lane.quality
    if figure is not None and found is not None and found.kl > 0:
        point = Point(found.kl, figure.median, min(figure.values), max(figure.values))
        yield Line(entry.label, entry.look, (point,))


def energy(view: View) -> Section:
    """Joules for each token, where the host counts them."""
    cases = [*view.cases("prefill"), *view.cases("decode"), *view.cases("sustained")]
    table = view.table(
        "Joules for each token, by the host's counter",
        [case.name for case in cases],
        lambda entry: [cell(entry.figure(case, "energy")) for case in cases],
    )
    notes = []
    for name, run in zip(view.group_titles, view.runs, strict=True):
        said = f"counted by {clean(run.energy)}" if run.energy is not None else "no counter on this host"
        notes.append(Text(f"{name}: {said}." if name else f"{said[0].upper()}{said[1:]}."))
    return Section("energy", "Energy", (*notes, *([] if table is None else [table])))


def processors(view: View) -> Section | None:
    """How many processors a lane kept busy."""
    cases = _phases(view)
    table = view.table(
        "Processors in use",
        [case.name for case in cases],
        lambda entry: [cell(entry.figure(case, "cpu")) for case in cases],
    )
    how = "CPU time over wall time: as many processors as threads are kept busy where nothing waits."
    return None if table is None else Section("processors", "Processors", (Text(how), table))


# The machine meanwhile


def conditions(view: View) -> Section | None:
    """Temperature, clock and load over the run, and what the system said of throttling."""
    rows = [Row(name, _conditions(run)) for name, run in zip(view.machines, view.runs, strict=True) if run.moments]
    if not rows:
        return None
    head = ("machine", "°C", "MHz", "may reach", "governor", "load", "others at most", "throttling")
    charts = [
        Chart(view.titled("Temperature and clock", index), "Temperature and clock over the run.", panels)
        for index, run in enumerate(view.runs)
        if (panels := tuple(_meanwhile(run)))
    ]
    table = Table("Conditions", head, (Group("", tuple(rows)),), words=(head.index("governor"), head.index("throttling")))
    return Section("conditions", "The machine meanwhile", (*charts, table))


def _conditions(run: Run) -> tuple[Cell, ...]:
    moments = run.moments
    busy = max(moments, key=lambda moment: moment.others or 0.0)
    others = "" if busy.others is None else number(busy.others)
    reasons = [clean(reason) for moment in moments for reason in moment.throttled]
    return (
        _range([celsius for _, celsius, _ in _seen(run)]),
        _range([mhz for _, _, mhz in _seen(run)]),
        _range([moment.mhz_limit for moment in moments]),
        Cell(joined(clean(moment.governor or "") for moment in moments) or "–"),
        _range([moment.load for moment in moments]),
        Cell(others, clean(busy.busiest)) if others else NONE,
        Cell(f"⚠ {joined(reasons)}" if reasons else "none was reported"),
    )


def _range(values: Sequence[float | None]) -> Cell:
    found = [value for value in values if value is not None]
    if not found:
        return NONE
    low, high = number(min(found)), number(max(found))
    return Cell(low if low == high else f"{low} to {high}")


def _seen(run: Run) -> list[tuple[float, float | None, float | None]]:
    """Seconds, °C and MHz at the run's moments and at the ends of its samples, in order."""
    seen = [(moment.at, moment.celsius, moment.mhz) for moment in run.moments]
    seen += [(sample.at + sample.seconds, sample.celsius, sample.mhz) for sample in run.samples]
    return sorted(seen, key=lambda each: each[0])


def _meanwhile(run: Run) -> Iterator[Lines]:
    """Of many looks that are drawn as one point, what is worst."""
    seen = _seen(run)
    heat, clock = [], []
    for part in pieces(seen, max(1, -(-len(seen) // POINTS))):
        celsius = [value for _, value, _ in part if value is not None]
        mhz = [value for _, _, value in part if value is not None]
        heat += [Point(part[0][0], max(celsius))] if celsius else []
        clock += [Point(part[0][0], min(mhz))] if mhz else []
    for look, (name, points) in enumerate((("hottest sensor, °C", heat), ("clock at its lowest, MHz", clock))):
        if len(points) > 2:
            yield Lines("seconds since the start", name, (Line("", look, tuple(points)),), zero=False, symbols=False)
