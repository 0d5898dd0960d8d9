"""Quality against speed as Markdown, out of a run alone."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.benchmarks.frontier.points import Point, decode_at, fastest_as_close, frontier, points
from edgellm.benchmarks.own import ENGINE
from edgellm.benchmarks.peers import table
from edgellm.benchmarks.peers.lanes import label
from edgellm.benchmarks.peers.table import Index
from edgellm.benchmarks.report.texts import MB, many
from edgellm.benchmarks.result import Case, Lane, Run
from edgellm.benchmarks.spread import Ratio

THEIRS = "llama.cpp"
AIM = 1.3  # times the decode of their best file that is as close
HOW = (
    "Speeds are tokens a second; decode is steps over the time that they took, after a context of so many tokens. Bits are "
    "those of a weight of the layers' linears, counted in the file, scales and all; in brackets what they would be with "
    "scales of 16 bits, where they are stored in 32. KL is KL(source || engine) in nats with its standard error, whole model "
    "as it runs, the source being the same file at float32; top-1 is how often both find the same token likeliest. In bold: "
    "llama.cpp's frontier, the files than which none of its others is both closer and faster."
)
RATIOS = (
    "llama.cpp's best file is the fastest whose KL is no higher than ours, or so little higher that it is a tie: by less "
    f"than two standard errors of the difference over the same positions. Ratios are edgellm / llama.cpp, {table.INTERVALS}. "
    "Between files is the ratio to llama.cpp's frontier at our very KL, taken round by round and straight in the logarithms of "
    "KL and speed between its two nearest files; it has no tie."
)


def markdown(run: Run) -> str:
    """The files of every model by closeness, and the ratios at equal closeness."""
    found = table.index(run)
    lines = [*table.head(run, HOW), ""]
    for model, source, threads in table.groups(run):
        lanes = table.rows(run, model, threads)
        lines += [f"## {model} ({source}), {many(threads, 'thread')}", ""]
        lines += [*_files(found, lanes), "", *_ratios(found, lanes, run.settings.seed)]
    return "\n".join(lines + table.foot(run))


def lead(run: Run) -> str:
    """A row for each of ours with its ratios in every case; a table a model.

    The ratios are in bold as elsewhere. The last column says in how many cases the ratio to the best file reaches the aim, and
    in brackets in how many its whole interval does.
    """
    found = table.index(run)
    lines = []
    for model in dict.fromkeys(lane.model for lane in run.lanes):
        threads = list(dict.fromkeys(lane.threads for lane in run.lanes if lane.model == model))
        counts = f"{' / '.join(map(str, threads))} {'thread' if threads == [1] else 'threads'}"
        titles = [f"{case.name.removeprefix('decode ')}, {counts}" for case in decodes(found)]
        first = ["edgellm", "KL", *titles, f"{AIM} times reached (surely)"]
        lines += table.rows_of([first, *_leads(found, run, model, threads)])
        lines.append("")
    return "\n".join(lines)


def _leads(found: Index, run: Run, model: str, threads: Sequence[int]) -> list[list[str]]:
    """By closeness. The ratio to llama.cpp's best file, in brackets that between files; by number of threads."""
    some = [table.rows(run, model, count) for count in threads]
    names = [mine for mine in some[0] if mine.engine == ENGINE and mine.quality is not None]
    made = []
    for name in sorted(names, key=lambda lane: lane.quality.kl if lane.quality else 0.0):
        cells, best = [], list[Ratio]()
        for case in decodes(found):
            pairs = [_both(found, lanes, name, case, run.settings.seed) for lanes in some]
            best += [each for each, _ in pairs if each is not None]
            halves = (" / ".join(map(_short, half)) for half in zip(*pairs, strict=True))
            cells.append("{} ({})".format(*halves))
        reached = sum(each.value >= AIM for each in best)
        surely = sum(each.low is not None and each.low >= AIM for each in best)
        verdict = f"{reached} of {len(best)} ({surely})" if best else "no file of llama.cpp's is as close"
        made.append([table.own_label(name), table.closeness(name)[0], *cells, verdict])
    return made


def _short(found: Ratio | None) -> str:
    return "-" if found is None else table.bold(f"{found.value:.2f}", table.clears(found))


def _both(found: Index, lanes: Sequence[Lane], name: Lane, case: Case, seed: int) -> tuple[Ratio | None, Ratio | None]:
    """The ratio of one of ours to the best file that is as close, and that to the frontier at its very KL."""
    ours, theirs = split(points(found, lanes, case))
    mine = next((each for each in ours if table.own_label(each.lane) == table.own_label(name)), None)
    return (None, None) if mine is None else _beside(mine, theirs, seed)[1:]


def _beside(mine: Point, theirs: Sequence[Point], seed: int) -> tuple[Point | None, Ratio | None, Ratio | None]:
    """The best file that is as close, the ratio to it, and that to the frontier at our very KL."""
    match, between = fastest_as_close(mine, theirs), decode_at(mine.kl, frontier(theirs))
    best = None if match is None else match.decode
    return match, table.times(mine.decode, best, seed), table.times(mine.decode, between, seed)


def decodes(found: Index) -> list[Case]:
    """The cases of decoding."""
    return [case for case in table.cases(found) if case.kind == "decode"]


def split(every: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """Ours, and llama.cpp's."""
    ours = [each for each in every if each.lane.engine == ENGINE]
    return ours, [each for each in every if each.lane.engine == THEIRS]


def _files(found: Index, lanes: Sequence[Lane]) -> list[str]:
    columns = table.cases(found)
    best = {case: {each.lane.id for each in frontier(split(points(found, lanes, case))[1])} for case in columns}
    rows = [["file", "bits", "MB", "KL", "top-1", *(case.name for case in columns)]]
    judged = [(lane.quality.kl, lane) for lane in lanes if lane.quality is not None]
    for _, lane in sorted(judged, key=lambda pair: pair[0]):
        speeds = [table.bold(table.text(found.get((lane.id, case, "speed"))), lane.id in best[case]) for case in columns]
        rows.append([label(lane), _bits(lane), f"{lane.size / MB:.0f}", *table.closeness(lane), *speeds])
    return table.rows_of(rows)


def _bits(lane: Lane) -> str:
    if lane.bits is None:
        return "-"
    own, half = f"{lane.bits:.2f}", lane.recipe.bits_half if lane.recipe else None
    return own if half is None or own == f"{half:.2f}" else f"{own} ({half:.2f})"


def _ratios(found: Index, lanes: Sequence[Lane], seed: int) -> list[str]:
    """A row for each of ours at each depth; nothing where there are none of ours, or none of llama.cpp's."""
    rows = [["edgellm", "decode after", "llama.cpp's best file as close", "KL ours / theirs", "ratio", "between files"]]
    for case in decodes(found):
        ours, theirs = split(points(found, lanes, case))
        for mine in ours if theirs else []:
            match, ratio, between = _beside(mine, theirs, seed)
            nearest = frontier(theirs)[0] if match is None else match
            name = "none is as close" if match is None else match.lane.variant
            cells = [table.own_label(mine.lane), str(case.depth), name, f"{mine.kl:.4f} / {nearest.kl:.4f}"]
            rows.append([*cells, table.ratio_text(ratio), table.ratio_text(between)])
    return [RATIOS, "", *table.rows_of(rows), ""] if len(rows) > 1 else []
