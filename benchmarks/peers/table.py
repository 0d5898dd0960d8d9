"""Markdown out of a run alone: what can be read later needs no machine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from edgellm.benchmarks.figures import Figure, figures, peak
from edgellm.benchmarks.metrics import standard_error
from edgellm.benchmarks.own import ENGINE
from edgellm.benchmarks.peers import quiet
from edgellm.benchmarks.peers.lanes import label
from edgellm.benchmarks.report.texts import MB, many
from edgellm.benchmarks.result import Case, Lane, Quality, Run
from edgellm.benchmarks.spread import SURE, Ratio, ratio, spread

Index = Mapping[tuple[str, Case, str], Figure]

LOAD = Case("load")


def markdown(run: Run) -> str:
    """The whole run as tables."""
    found = index(run)
    lines = [*head(run, HOW), ""]
    for model, source, threads in groups(run):
        lines += [f"## {model} ({source}), {many(threads, 'thread')}", ""]
        some = rows(run, model, threads)
        lines += [*_engines(found, some), "", *_ratios(found, some, run.settings.seed), ""]
    lines += foot(run)
    return "\n".join(lines)


INTERVALS = (
    f"the median of the rounds' ratios, and in brackets the {SURE} interval of that median. In bold: ratios whose "
    "interval clears 1; all others are not told apart from 1. Without brackets there were too few rounds for an interval"
)
HOW = (
    "Speeds are tokens a second; decode is steps over the time that they took. Weights are the bits of the linears and the "
    "inputs that share a scale; then come the bits of embedding (tied or untied, where that matters) and head, and the "
    "type of the KV cache. "
    "Load is from files that were read before, beyond the imports. "
    f"Ratios are edgellm / peer, {INTERVALS}. "
    "KL is KL(source || engine) in nats with its standard error, the source being the same file at float32; "
    "a tie is a difference below two standard errors over the same positions; "
    "top-1 is how often both find the same token likeliest. RSS is the process's peak."
)


def index(run: Run) -> Index:
    """The run's figures by lane, case and measure."""
    return {(each.lane, each.case, each.measure): each for each in figures(run)}


def cases(found: Index) -> list[Case]:
    """What is measured in tokens a second, prefills first."""
    there = {case for _, case, measure in found if measure == "speed" and case.kind in ("prefill", "decode")}
    return sorted(there, key=lambda case: (case.kind != "prefill", case.prompt, case.depth, case.steps, case.state))


def groups(run: Run) -> list[tuple[str, str, int]]:
    """The tables: model, its source, and number of threads, in the run's order."""
    there = dict.fromkeys((lane.model, lane.source, lane.threads) for lane in run.lanes)
    models = list(dict.fromkeys(model for model, _, _ in there))
    return sorted(there, key=lambda each: models.index(each[0]))


def rows(run: Run, model: str, threads: int) -> list[Lane]:
    """The lanes of a table."""
    return [lane for lane in run.lanes if (lane.model, lane.threads) == (model, threads)]


def times(ours: Figure | None, theirs: Figure | None, seed: int) -> Ratio | None:
    """Ours / theirs, paired over the rounds; None where either has no figure."""
    return None if ours is None or theirs is None else ratio(theirs, ours, seed)


def clears(found: Ratio) -> bool:
    """Whether the two are told apart."""
    return found.verdict in ("faster", "slower")


def ratio_text(found: Ratio | None) -> str:
    """The ratio with its interval, in bold where that clears 1; or a dash."""
    if found is None:
        return "-"
    interval = "" if found.low is None or found.high is None else f" ({found.low:.2f}-{found.high:.2f})"
    return bold(f"{found.value:.2f}{interval}", clears(found))


def bold(text: str, wanted: bool) -> str:
    """In Markdown."""
    return f"**{text}**" if wanted else text


def head(run: Run, how: str) -> list[str]:
    """What every table begins with: command, machine, versions, how to read the figures, and what disturbed them."""
    machine, before = run.machine, run.moments[0] if run.moments else None
    features = ", ".join(machine.features or ()) or "features unknown"
    memory = "" if machine.memory is None else f", {machine.memory / 2**30:.0f} GiB"
    packages = {name: version for lane in run.lanes for name, version in lane.versions.items()} or {"edgellm": run.version}
    versions = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
    load = "" if before is None or before.load is None else f"Load average at the start {before.load:.2f}."
    where = f"{machine.cpu} ({many(machine.cores, 'core')}{memory}; {features}), {machine.system}, {machine.python}"
    medians = (
        f"Medians over {many(run.settings.trials, 'round')}, lowest and highest in brackets; every engine in a fresh process, "
        "in shuffled order."
    )
    lines = [
        f"`{run.command}`, {run.started}.",
        "",
        f"{where}. {versions}. {load}",
        "",
        f"{medians} {how}",
    ]
    noise = [*run.doubts, *(() if before is None else quiet.reasons(before))]
    others = {(each.lane, each.round): each.others for each in run.samples if each.round and each.others is not None}
    busy = [each for each in others.values() if each > quiet.BUSY_LIMIT]
    if busy:
        noise.append(f"others kept up to {max(busy):.2f} processors busy during {len(busy)} of {len(others)} runs")
    if noise:
        lines += ["", f"**Not a quiet machine** ({'; '.join(noise)}): these figures are not to be quoted."]
    return lines


def foot(run: Run) -> list[str]:
    """What every table ends with: what is not in it."""
    lines = []
    if run.notes:
        lines += ["To know:", "", *(f"- {note}" for note in run.notes), ""]
    failed = {f"- {lane.model}, {label(lane)}: {lane.failed}" for lane in run.lanes if lane.failed is not None}
    if failed:
        lines += ["Failed:", "", *sorted(failed), ""]
    return lines


def _engines(found: Index, some: Sequence[Lane]) -> list[str]:
    columns = cases(found)
    names = ["engine", "weights", "embedding, head", "KV", "file MB", "import ms", "load ms"]
    table = [[*names, *(case.name for case in columns), "RSS MB", "KL", "top-1"]]
    for lane in some:
        kv = lane.recipe.kv if lane.recipe else None
        cells = [label(lane), _weights(lane), _ends(lane), kv or "-", f"{lane.size / MB:.0f}"]
        measures = [(LOAD, "import"), (LOAD, "time"), *((case, "speed") for case in columns)]
        cells += [text(found.get((lane.id, *each))) for each in measures]
        rss = peak(found.values(), lane.id)
        cells += ["-" if rss is None else f"{rss.median / MB:.0f}", *closeness(lane)]
        table.append(cells)
    return rows_of(table)


def _ratios(found: Index, some: Sequence[Lane], seed: int) -> list[str]:
    """Ours against every peer of the same width, with both KLs in the same row."""
    columns = cases(found)
    table = [["edgellm", "peer", "embedding, head", *(case.name for case in columns), "load", "RSS"]]
    table[0] += ["KL ours / theirs", "KL no worse"]
    for mine in (lane for lane in some if lane.engine == ENGINE):
        for theirs in some:
            if theirs.engine == ENGINE or _width(theirs) != _width(mine):
                continue
            cells = [own_label(mine), label(theirs), f"{_ends(mine)} / {_ends(theirs)}"]
            measures = [*((case, "speed") for case in columns), (LOAD, "time")]
            pairs = [(found.get((mine.id, *each)), found.get((theirs.id, *each))) for each in measures]
            pairs.append((peak(found.values(), mine.id), peak(found.values(), theirs.id)))
            cells += [ratio_text(times(ours, peers, seed)) for ours, peers in pairs]
            a, b = mine.quality, theirs.quality
            cells += ["-", "-"] if a is None or b is None else [f"{a.kl:.4f} / {b.kl:.4f}", no_worse(a, b)]
            table.append(cells)
    return rows_of(table) if len(table) > 1 else []


def own_label(lane: Lane) -> str:
    """One of ours among ours: "onnx:int8"."""
    return f"{lane.runtime}:{lane.variant}"


def text(figure: Figure | None) -> str:
    """The median with the lowest and the highest, or a dash."""
    return "-" if figure is None else spread(figure.values).text()


def closeness(lane: Lane) -> list[str]:
    """KL and top-1, or dashes."""
    quality = lane.quality
    return ["-", "-"] if quality is None else [f"{quality.kl:.4f} ± {quality.kl_error:.4f}", f"{quality.top1:.3f}"]


def _width(lane: Lane) -> int | None:
    return lane.recipe.bits if lane.recipe else None


def _weights(lane: Lane) -> str:
    """Bits and block of the linears; runs that were made first have the bits only, and none of what follows."""
    if lane.recipe is None:
        return "-"
    block = lane.recipe.block
    return str(lane.recipe.bits) if block is None else f"{lane.recipe.bits}, {f'block {block}' if block else 'row'}"


def _ends(lane: Lane) -> str:
    return "-" if lane.recipe is None or lane.recipe.head is None else f"{lane.recipe.embedding}, {lane.recipe.head}"


def no_worse(ours: Quality, theirs: Quality) -> str:
    """Is our KL no higher? A difference below two standard errors, taken over the same positions, is a tie."""
    differences = [a - b for a, b in zip(ours.divergences, theirs.divergences, strict=True)]
    if abs(statistics.fmean(differences)) < 2 * standard_error(differences):
        return "tie"
    return "yes" if statistics.fmean(differences) <= 0 else "no"


def rows_of(table: Sequence[Sequence[str]]) -> list[str]:
    """Markdown of a table; the first row is its head."""
    first, *body = ("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in table)
    return [first, "|" + " --- |" * len(table[0]), *body]
