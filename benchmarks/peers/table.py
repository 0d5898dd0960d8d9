"""Markdown out of a report's JSON alone: what can be read later needs no machine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.benchmarks.metrics import standard_error
from edgellm.benchmarks.peers.engine import OURS
from edgellm.benchmarks.peers.quiet import BUSY_LIMIT

MB = 1e6


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 0) -> str:
        """As `median (low-high)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread | None:
    """Of the values; None if there are none."""
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def figures(report: Mapping[str, Any], model: str, engine: str, threads: int, measure: str) -> dict[int, float]:
    """A measure of one row by round; rounds that failed are not there."""
    return {
        sample["round"]: float(sample[measure])
        for sample in report["samples"]
        if (sample["model"], sample["engine"], sample["threads"]) == (model, engine, threads)
        and sample.get(measure) is not None
    }


def ratio(report: Mapping[str, Any], model: str, ours: str, theirs: str, threads: int, measure: str) -> Spread | None:
    """Ours / theirs: their medians, and the lowest and highest within a round that both finished."""
    a, b = (figures(report, model, engine, threads, measure) for engine in (ours, theirs))
    rounds = [a[number] / b[number] for number in a.keys() & b.keys()]
    if not rounds:
        return None
    return Spread(statistics.median(a.values()) / statistics.median(b.values()), min(rounds), max(rounds))


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report as tables."""
    lines = [*head(report, HOW), ""]
    for model in report["models"]:
        for threads in report["settings"]["threads"]:
            lines += [f"## {model['name']} ({model['source']}), {_count(threads, 'thread')}", ""]
            lines += [*_engines(report, model["name"], threads), "", *_ratios(report, model["name"], threads), ""]
    lines += foot(report)
    return "\n".join(lines)


HOW = (
    "Speeds are tokens a second; decode is the median step. Weights are the bits of the linears and the "
    "inputs that share a scale; then come the bits of embedding (tied or untied, where that matters) and head, and the "
    "type of the KV cache. "
    "Load is from files that were read before, beyond the imports. "
    "Ratios are edgellm / peer, median to median; in brackets the lowest and highest within a round. "
    "KL is KL(source || engine) in nats with its standard error, the source being the same file at float32; "
    "a tie is a difference below two standard errors over the same positions; "
    "top-1 is how often both find the same token likeliest. RSS is the process's peak."
)


def head(report: Mapping[str, Any], how: str) -> list[str]:
    """What every table begins with: command, machine, versions, how to read the figures, and what disturbed them."""
    machine, settings = report["machine"], report["settings"]
    features = ", ".join(machine["features"] or ()) or "features unknown"
    memory = "" if machine["memory"] is None else f", {machine['memory'] / 2**30:.0f} GiB"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    load = report["quiet"]["load"]
    rounds = (
        f"Medians over {_count(settings['trials'], 'round')}, lowest and highest in brackets; every engine in a fresh process, "
        f"in shuffled order. {how}"
    )
    lines = [
        f"`{report['command']}`, {report['started']}.",
        "",
        f"{machine['cpu']} ({_count(machine['cores'], 'core')}{memory}; {features}), {machine['system']}, {machine['python']}. "
        f"{versions}. " + ("" if load is None else f"Load average at the start {load:.2f}."),
        "",
        rounds,
    ]
    noise = list(report["quiet"]["reasons"])
    busy = [sample["others"] for sample in report["samples"] if sample.get("others", 0) > BUSY_LIMIT]
    if busy:
        noise.append(f"others kept up to {max(busy):.2f} processors busy during {len(busy)} of {len(report['samples'])} runs")
    if noise:
        lines += ["", f"**Not a quiet machine** ({'; '.join(noise)}): these figures are not to be quoted."]
    return lines


def foot(report: Mapping[str, Any]) -> list[str]:
    """What every table ends with: what is not in it."""
    lines = []
    if report["left_out"]:
        lines += ["Left out:", ""]
        lines += [f"- {each['model']}, {each['engine']}: {each['reason']}" for each in report["left_out"]]
        lines.append("")
    failed = [each for each in [*report["quality"], *report["samples"]] if "error" in each]
    if failed:
        lines += ["Failed:", ""]
        lines += sorted({f"- {each['model']}, {each['engine']}: {each['error']}" for each in failed})
        lines.append("")
    return lines


def measures(report: Mapping[str, Any]) -> dict[str, str]:
    """What is measured in tokens a second: name in the samples to title."""
    settings = report["settings"]
    return {f"prefill_{settings['prefill']}": f"prefill {settings['prefill']}"} | {
        f"decode_{depth}": f"decode after {depth}" for depth in settings["depths"]
    }


def _engines(report: Mapping[str, Any], model: str, threads: int) -> list[str]:
    columns = measures(report)
    head = ["engine", "weights", "embedding, head", "KV", "file MB", "import ms", "load ms"]
    rows = [[*head, *columns.values(), "RSS MB", "KL", "top-1"]]
    for each in report["engines"]:
        if each["model"] != model:
            continue
        engine = each["engine"]
        cells = [engine, _weights(each), _ends(each), str(each.get("kv", "-")), f"{each['size'] / MB:.0f}"]
        for measure in ("import_ms", "load_ms", *columns):
            found = spread(list(figures(report, model, engine, threads, measure).values()))
            cells.append("-" if found is None else found.text())
        rss = spread(list(figures(report, model, engine, threads, "rss").values()))
        quality = quality_of(report, model, engine)
        cells += ["-" if rss is None else f"{rss.median / MB:.0f}"]
        cells += (
            ["-", "-"] if quality is None else [f"{quality['kl']:.4f} ± {quality['kl_error']:.4f}", f"{quality['top1']:.3f}"]
        )
        rows.append(cells)
    return rows_of(rows)


def _ratios(report: Mapping[str, Any], model: str, threads: int) -> list[str]:
    """Ours against every peer of the same width, with both KLs in the same row."""
    columns = measures(report)
    head = ["edgellm", "peer", "embedding, head"]
    rows = [[*head, *columns.values(), "load", "RSS", "KL ours / theirs", "KL no worse"]]
    engines = [each for each in report["engines"] if each["model"] == model]
    ours = [each for each in engines if each["engine"].startswith(OURS)]
    for mine in ours:
        for theirs in engines:
            if theirs in ours or theirs["bits"] != mine["bits"]:
                continue
            pair = mine["engine"], theirs["engine"]
            cells = [pair[0].removeprefix(OURS), pair[1], f"{_ends(mine)} / {_ends(theirs)}"]
            for measure in (*columns, "load_ms", "rss"):
                found = ratio(report, model, *pair, threads, measure)
                cells.append("-" if found is None else found.text(2))
            a, b = (quality_of(report, model, engine) for engine in pair)
            cells += ["-", "-"] if a is None or b is None else [f"{a['kl']:.4f} / {b['kl']:.4f}", no_worse(a, b)]
            rows.append(cells)
    return rows_of(rows) if len(rows) > 1 else []


def _weights(engine: Mapping[str, Any]) -> str:
    """Bits and block of the linears; reports of the first schema have the bits only, and none of what follows."""
    block = engine.get("block")
    return str(engine["bits"]) if block is None else f"{engine['bits']}, {f'block {block}' if block else 'row'}"


def _ends(engine: Mapping[str, Any]) -> str:
    return f"{engine['embedding']}, {engine['head']}" if "head" in engine else "-"


def no_worse(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Is our KL no higher? A difference below two standard errors, taken over the same positions, is a tie."""
    differences = [a - b for a, b in zip(ours["divergences"], theirs["divergences"], strict=True)]
    if abs(statistics.fmean(differences)) < 2 * standard_error(differences):
        return "tie"
    return "yes" if statistics.fmean(differences) <= 0 else "no"


def quality_of(report: Mapping[str, Any], model: str, engine: str) -> Mapping[str, Any] | None:
    """How close a row is to the source; None where that is not known."""
    for each in report["quality"]:
        if (each["model"], each["engine"]) == (model, engine) and "kl" in each:
            found: Mapping[str, Any] = each
            return found
    return None


def rows_of(rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown of a table; the first row is its head."""
    head, *body = ("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)
    return [head, "|" + " --- |" * len(rows[0]), *body]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
