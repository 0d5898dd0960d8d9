"""Quality against speed as Markdown, out of a report's JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.benchmarks.frontier.points import Point, fastest_as_close, frontier, points, speed_at
from edgellm.benchmarks.peers import table
from edgellm.benchmarks.peers.engine import OURS

THEIRS = "llama_cpp:"
MB = 1e6
HOW = (
    "Speeds are tokens a second; decode is the median step after a context of so many tokens. Bits are those of a weight of "
    "the layers' linears, counted in the file, scales and all; in brackets what they would be with scales of 16 bits, where "
    "they are stored in 32. KL is KL(source || engine) in nats with its standard error, whole model as it runs, the source "
    "being the same file at float32; top-1 is how often both find the same token likeliest. In bold: llama.cpp's frontier, "
    "the files than which none of its others is both closer and faster."
)
RATIOS = (
    "llama.cpp's best file is the fastest whose KL is no higher than ours, or so little higher that it is a tie: by less "
    "than two standard errors of the difference over the same positions. The ratio is edgellm / llama.cpp, median to "
    "median, in brackets the lowest and highest within a round. Between files is the ratio to llama.cpp's frontier at our "
    "very KL, taken straight in the logarithms of KL and speed between its two nearest files; it has no tie."
)


def markdown(report: Mapping[str, Any]) -> str:
    """The files of every model by closeness, and the ratios at equal closeness."""
    lines = [*table.head(report, HOW), ""]
    for model in report["models"]:
        for threads in report["settings"]["threads"]:
            count = f"{threads} thread{'' if threads == 1 else 's'}"
            lines += [f"## {model['name']} ({model['source']}), {count}", ""]
            lines += [*_files(report, model["name"], threads), "", *_ratios(report, model["name"], threads)]
    return "\n".join(lines + table.foot(report))


def decodes(report: Mapping[str, Any]) -> dict[str, int]:
    """The measures of decoding, by name in the samples: to the depth."""
    return {f"decode_{depth}": depth for depth in report["settings"]["depths"]}


def split(every: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """Ours, and llama.cpp's."""
    ours = [each for each in every if each.engine.startswith(OURS)]
    return ours, [each for each in every if each.engine.startswith(THEIRS)]


def _files(report: Mapping[str, Any], model: str, threads: int) -> list[str]:
    columns = table.measures(report)
    best = {
        measure: {each.engine for each in frontier(split(points(report, model, threads, measure))[1])} for measure in columns
    }
    rows = [["file", "bits", "MB", "KL", "top-1", *columns.values()]]
    engines = [each for each in report["engines"] if each["model"] == model]
    judged = [(quality, each) for each in engines if (quality := table.quality_of(report, model, each["engine"])) is not None]
    for quality, each in sorted(judged, key=lambda pair: float(pair[0]["kl"])):
        cells = [each["engine"], _bits(each.get("stored")), f"{each['size'] / MB:.0f}"]
        cells += [f"{quality['kl']:.4f} ± {quality['kl_error']:.4f}", f"{quality['top1']:.3f}"]
        for measure in columns:
            found = table.spread(list(table.figures(report, model, each["engine"], threads, measure).values()))
            text = "-" if found is None else found.text()
            cells.append(f"**{text}**" if each["engine"] in best[measure] else text)
        rows.append(cells)
    return table.rows_of(rows)


def _bits(stored: Mapping[str, float] | None) -> str:
    if stored is None:
        return "-"
    own, half = f"{stored['bits']:.2f}", f"{stored['bits_half']:.2f}"
    return own if own == half else f"{own} ({half})"


def _ratios(report: Mapping[str, Any], model: str, threads: int) -> list[str]:
    """A row for each of ours at each depth; nothing where there are none of ours, or none of llama.cpp's."""
    title = ["edgellm", "decode after", "llama.cpp's best file as close", "KL ours / theirs", "ratio", "between files"]
    rows = [title]
    for measure, depth in decodes(report).items():
        ours, theirs = split(points(report, model, threads, measure))
        line = frontier(theirs)
        for mine in ours if theirs else []:
            match = fastest_as_close(mine, theirs)
            cells = [mine.engine.removeprefix(OURS), str(depth)]
            if match is None:
                cells += ["none is as close", f"{mine.kl:.4f} / {line[0].kl:.4f}", "-"]
            else:
                ratio = table.ratio(report, model, mine.engine, match.engine, threads, measure)
                cells += [match.engine.removeprefix(THEIRS), f"{mine.kl:.4f} / {match.kl:.4f}"]
                cells += ["-" if ratio is None else ratio.text(2)]
            speed = speed_at(mine.kl, line)
            rows.append([*cells, "-" if speed is None else f"{mine.speed / speed:.2f}"])
    return [RATIOS, "", *table.rows_of(rows), ""] if len(rows) > 1 else []
