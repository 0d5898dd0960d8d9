"""What a run measured, as figures: one number a round for each measure of each case of each lane.

    for figure in figures(run):
        print(figure.lane, figure.case.name, figure.measure, figure.median, figure.unit)

Every table, plot and comparison takes its numbers from here, so that a tok/s is the same tok/s everywhere. The warm-up
(round 0) is in none of them; `warmups` has it apart. A value of 0 is one that the clock or the counter could not see, and is
left out.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from edgellm.benchmarks.emulation import software
from edgellm.benchmarks.result import Case, Kind, Lane, Run, Sample, State

# The parts of a chain, in the order in which a text goes through them.
PARTS = ("template", "tokenize", "prefill", "sample", "decode", "detokenize")
PERCENTILES = {"p50": 50, "p95": 95, "p99": 99}

_KINDS, _STATES = get_args(Kind), get_args(State)
_DECODES = ("decode", "sustained", "chain")  # the kinds whose samples have a time for each token


@dataclass(frozen=True)
class Figure:
    """One measure of one case of one lane.

    Attributes:
        lane: id of the lane.
        measure: "speed": tokens a second, of prefill, decode, sustained, and of a chain's tokens. "time": milliseconds, of
            load, first token, and a chain from its text to its last token. "p50", "p95", "p99": milliseconds between tokens.
            "rss", "pss": bytes. "cpu": processors in use. "energy": joules for each token, by the run's counter and of what
            that counts; of a sustained run one figure for all of it, since a counter may move in longer steps than a window.
            "bandwidth share", "int8 share": of the machine's limit, 1 being all of it. "import": milliseconds that the
            packages took before a load. "template", "tokenize" and so on: milliseconds that a part of a chain took.
        unit: "tok/s", "ms", "B", "cores", "J/tok", or "" of a share.
        higher: whether more is better.
        by_round: above 0; of rounds from 1 on, or of round 0 alone where it comes from `warmups`. Never empty.
    """

    lane: str
    case: Case
    measure: str
    unit: str
    higher: bool
    by_round: Mapping[int, float]

    @property
    def values(self) -> tuple[float, ...]:
        """In the order of rounds."""
        return tuple(self.by_round[number] for number in sorted(self.by_round))

    @property
    def median(self) -> float:
        """Over the rounds."""
        return statistics.median(self.by_round.values())


def figures(run: Run) -> tuple[Figure, ...]:
    """All of them, in the order of lanes, cases (by kind, prompt, depth, steps, state) and measures."""
    return tuple(_figures(run, warm=False))


def warmups(run: Run) -> tuple[Figure, ...]:
    """The same measures of round 0, which are shown apart and count in no statistic."""
    return tuple(_figures(run, warm=True))


def figure(run: Run, lane: str, case: Case, measure: str) -> Figure | None:
    """One of them; None where the run does not have it."""
    for each in _figures(run, warm=False, lane=lane, case=case):
        if each.measure == measure:
            return each
    return None


def peak(every: Iterable[Figure], lane: str) -> Figure | None:
    """A lane's peak by round, the most of the cases that all lanes have: a peer has no chain, and so no tokenizer in memory."""
    found: dict[str, dict[Case, Figure]] = {}
    for each in every:
        if each.measure == "rss":
            found.setdefault(each.lane, {})[each.case] = each
    shared = set.intersection(*map(set, found.values())) if found else set[Case]()
    some = [each for case, each in found.get(lane, {}).items() if case in shared]
    most: dict[int, float] = {}
    for each in some:
        most |= {number: max(value, most.get(number, 0.0)) for number, value in each.by_round.items()}
    return dataclasses.replace(some[0], by_round=most) if some else None


def best_probe(run: Run, what: Literal["bandwidth", "int8"], threads: int) -> float | None:
    """The most that the machine did with so many threads: bytes or multiply-adds a second; None where it was not measured."""
    values = [probe.value for probe in run.probes if (probe.what, probe.threads) == (what, threads) and probe.value > 0]
    return max(values, default=None)


def _figures(run: Run, *, warm: bool, lane: str | None = None, case: Case | None = None) -> Iterator[Figure]:
    if run.machine.emulated is not None:  # what is emulated says what a lane says, and nothing of how fast
        return
    samples: dict[tuple[str, Case], list[Sample]] = {}
    for sample in run.samples:
        if (sample.round == 0) == warm and lane in (None, sample.lane) and case in (None, sample.case):
            samples.setdefault((sample.lane, sample.case), []).append(sample)
    for each in run.lanes:
        if each.failed is not None or software(each.device):  # what it measured is in the file, and is no result
            continue
        for found in sorted((case for id_, case in samples if id_ == each.id), key=_order):
            for name, (unit, higher, value) in _measures(run, each, found).items():
                if (found.kind, name) == ("sustained", "energy"):
                    by_round = _energy_of_all(samples[each.id, found])
                else:
                    by_round = _by_round(samples[each.id, found], value)
                if by_round:
                    yield Figure(each.id, found, name, unit, higher, by_round)


def _order(case: Case) -> tuple[int, ...]:
    return _KINDS.index(case.kind), case.prompt, case.depth, case.steps, _STATES.index(case.state)


def _by_round(samples: list[Sample], value: Callable[[Sample], float | None]) -> dict[int, float]:
    """The median where a round has a case several times."""
    found: dict[int, list[float]] = {}
    for sample in samples:
        number = value(sample)
        if number is not None and number > 0:
            found.setdefault(sample.round, []).append(number)
    return {number: statistics.median(found[number]) for number in sorted(found)}


Measure = tuple[str, bool, Callable[[Sample], "float | None"]]  # unit, whether more is better, value of a sample


def _measures(run: Run, lane: Lane, case: Case) -> dict[str, Measure]:
    """What is measured of a case, in the order of tables."""
    measures: dict[str, Measure] = {}
    if case.kind in ("load", "first token", "chain"):
        measures["time"] = "ms", False, lambda sample: sample.seconds * 1e3
    if case.kind == "load":
        measures["import"] = "ms", False, _part("import")
    if case.kind == "prefill" or case.kind in _DECODES:
        measures["speed"] = "tok/s", True, _speed
    if case.kind in _DECODES:
        for name, percent in PERCENTILES.items():
            measures[name] = "ms", False, _percentile(percent)
    if case.kind == "chain":
        for name in PARTS:
            measures[name] = "ms", False, _part(name)
    measures["rss"] = "B", False, lambda sample: sample.rss
    measures["pss"] = "B", False, lambda sample: sample.pss
    measures["cpu"] = "cores", False, lambda sample: None if sample.cpu is None else sample.cpu / sample.seconds
    if case.kind in ("prefill", "decode", "sustained"):
        measures["energy"] = "J/tok", False, _energy
    if case.kind == "decode":
        measures["bandwidth share"] = "", True, _bandwidth_share(lane, best_probe(run, "bandwidth", lane.threads))
    if case.kind == "prefill":
        measures["int8 share"] = "", True, _int8_share(lane, best_probe(run, "int8", lane.threads))
    return measures


def _speed(sample: Sample) -> float | None:
    if sample.case.kind == "prefill":
        return sample.case.prompt / sample.seconds
    if sample.steps:
        return len(sample.steps) / sum(sample.steps)
    return _tokens(sample) / sample.seconds or None


def _tokens(sample: Sample) -> int:
    """How many were decoded: of a decode also where the engine tells of all of them together."""
    return len(sample.steps) or (sample.case.steps if sample.case.kind == "decode" else 0)


def _percentile(percent: int) -> Callable[[Sample], float | None]:
    """Between the two nearest steps, in proportion, as numpy does by default."""
    return lambda sample: float(np.percentile(sample.steps, percent)) * 1e3 if sample.steps else None


def _part(name: str) -> Callable[[Sample], float | None]:
    return lambda sample: sample.parts[name] * 1e3 if name in sample.parts else None


def _energy(sample: Sample) -> float | None:
    tokens = sample.case.prompt if sample.case.kind == "prefill" else _tokens(sample)
    return None if sample.joules is None or tokens == 0 else sample.joules / tokens


def _energy_of_all(samples: Sequence[Sample]) -> dict[int, float]:
    """Of windows together, those among them that a counter's step did not reach."""
    known = [sample for sample in samples if sample.joules is not None]
    joules, tokens = sum(sample.joules or 0.0 for sample in known), sum(map(_tokens, known))
    return {1: joules / tokens} if joules > 0 and tokens else {}


def _bandwidth_share(lane: Lane, best: float | None) -> Callable[[Sample], float | None]:
    """Of reading once for each token all weights, and the cache of the tokens before it."""

    def share(sample: Sample) -> float | None:
        speed = _speed(sample)
        if speed is None or best is None or lane.weight_bytes is None or lane.cache_bytes is None:
            return None
        positions = sample.case.depth + (_tokens(sample) - 1) / 2
        return (lane.weight_bytes + lane.cache_bytes * positions) * speed / best

    return share


def _int8_share(lane: Lane, best: float | None) -> Callable[[Sample], float | None]:
    """Of the multiply-adds of linears alone."""

    def share(sample: Sample) -> float | None:
        speed = _speed(sample)
        return None if speed is None or best is None or lane.products is None else lane.products * speed / best

    return share
