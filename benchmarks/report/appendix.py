"""The end of a report: how figures are defined, and on what, with what and of what they were measured."""

from __future__ import annotations

from collections.abc import Iterator

from edgellm.benchmarks.report.document import Block, Facts, Section, Text, clean
from edgellm.benchmarks.report.texts import GB, error, many, number, size
from edgellm.benchmarks.report.view import Entry, View
from edgellm.benchmarks.result import Run
from edgellm.benchmarks.spread import SURE
from edgellm.card import GraphCard

DEFINITIONS = (
    ("prefill, tok/s", "tokens of the prompt over the time from an empty cache to the logits of its last token"),
    ("decode, tok/s", "steps over the time that they took together, greedy, one token each"),
    ("first token", "from the prompt's token ids to the first token; where it is cold, from before the load"),
    ("load", "from the call to a model that can run; cold: with none of its files in memory before"),
    ("p50, p95, p99", "of the times of single steps within a round, between the two nearest in proportion"),
    ("RSS, PSS", "of the measuring process: peak resident during a phase; proportional share at its end"),
    ("processors", "CPU seconds of all threads over wall seconds"),
    ("KL", "mean of KL(source || lane) over positions, in nats; the source is float32"),
    ("bits", "of a weight of the layers' linears, counted in the file, scales and all"),
    (
        "share of the bandwidth",
        "(bytes of weights + bytes of cache at the middle step) × decode speed / the best bandwidth probe",
    ),
    ("share of int8", "multiply-adds of the linears for a token × prefill speed / the best int8 probe"),
    ("energy", "joules for each token, of what the counter counts, idle part and all"),
    ("median, spread", "over rounds from 1 on; a round has every case of every lane, in random order"),
    ("interval", f"{SURE}, bootstrap over rounds, of the median of ratios within rounds"),
)
VERDICTS = {
    "passed": "passed its gate",
    "degraded": "past its gate, kept because that was asked for",
    "chosen": "past its gate, kept because the method was named",
    "ungated": "measured; this method has no gate",
    "not measured": "not measured",
}


def definitions() -> Section:
    """What each figure is."""
    return Section("definitions", "How figures are defined", (Facts("", DEFINITIONS),))


def setting(view: View) -> Section:
    """Machine, settings and command of each run."""
    blocks: list[Block] = []
    for name, run in zip(view.machines, view.runs, strict=True):
        blocks += [Facts(name, tuple(_machine(run))), Text(clean(run.command), code=True)]
        blocks += [Text(clean(note)) for note in run.notes]
    return Section("machine", "Machine, settings, command", tuple(blocks))


def _machine(run: Run) -> Iterator[tuple[str, str]]:
    machine, settings = run.machine, run.settings
    yield "processor", clean(f"{machine.cpu}, {many(machine.cores, 'core')}, {machine.architecture}")
    yield "features", "not told by the system" if machine.features is None else clean(", ".join(machine.features)) or "none"
    yield "memory", "not told by the system" if machine.memory is None else f"{machine.memory / GB:.1f} GB"
    yield "system", clean(machine.system)
    yield "Python", clean(machine.python)
    yield "edgellm", clean(run.version)
    yield "started", clean(run.started)
    yield "energy counter", "none" if run.energy is None else clean(run.energy)
    yield "threads", ", ".join(str(count or "as suits the machine") for count in settings.threads)
    yield "prompts, depths", f"{_counts(settings.prompts)} tokens in; {_counts(settings.depths)} in the cache"
    yield "decode", f"{many(settings.decode, 'step')} after each depth"
    yield "rounds", f"{settings.trials} and a warm-up, seed {settings.seed}" + ("" if run.complete else "; interrupted")
    yield "sustained", f"{number(settings.sustained)} s" if settings.sustained else "not asked for"


def _counts(counts: tuple[int, ...]) -> str:
    return ", ".join(f"{count:,}" for count in counts) or "none"


def lanes(view: View) -> Section:
    """Each lane: its files, packages and fidelity card; once where machines or threads share them."""
    blocks: list[Block] = []
    shown: dict[tuple[object, ...], list[Entry]] = {}
    for entry in view.all:
        lane = entry.lane
        versions = tuple(sorted(lane.versions.items()))
        shown.setdefault((lane.engine, lane.model, lane.variant, lane.runtime, lane.digest, versions), []).append(entry)
    for entries in shown.values():
        title = "; ".join(dict.fromkeys(entry.label for entry in entries))
        blocks.append(Facts(title, tuple(_lane(entries))))
    return Section("lanes", "What was measured", tuple(blocks))


def _lane(entries: list[Entry]) -> Iterator[tuple[str, str]]:
    lane = entries[0].lane
    yield "ids", clean(", ".join(dict.fromkeys(entry.lane.id for entry in entries)))
    yield "model", clean(f"{lane.model}, {lane.variant}" if lane.variant else lane.model)
    yield "made of", clean(lane.source) or "not told"
    yield "engine", clean(f"{lane.engine}, {lane.runtime}" if lane.runtime else lane.engine)
    if lane.device:
        yield "device", clean("; ".join(dict.fromkeys(entry.lane.device for entry in entries)))
    yield "versions", clean(", ".join(f"{name} {version}" for name, version in sorted(lane.versions.items()))) or "not told"
    yield "digest (sha256)", clean(lane.digest) or "not told"
    yield "file", size(lane.size) + ("" if lane.bits is None else f", {lane.bits:.2f} bits a linear weight")
    if lane.weight_bytes is not None:
        cache = "" if lane.cache_bytes is None else f", and {lane.cache_bytes:,} B of cache for each token before it"
        yield "a token reads", f"{size(lane.weight_bytes)} of weights{cache}"
    yield from _fidelity(lane.fidelity)


def _fidelity(card: GraphCard | None) -> Iterator[tuple[str, str]]:
    if card is None:
        yield "fidelity card", "none"
        return
    yield "fidelity card", clean(f"{VERDICTS[card.verdict]}: {card.reason}")
    gaps = {"the runtime against the source": card.run, "quantization (numpy)": card.quantization, "export": card.export}
    for name, gap in gaps.items():
        if gap is not None:
            kl = f"KL {number(gap.kl)} ± {error(gap.kl_error)} nats, 99th percentile {number(gap.kl_p99)}"
            yield name, f"{kl}, top-1 {gap.top1:.3f}, {many(gap.positions, 'position')}"
    if card.perplexity is not None and card.source_perplexity is not None:
        yield "perplexity", f"{number(card.perplexity)}, of the source {number(card.source_perplexity)}"
    for note in card.notes:
        yield "note", clean(note)
