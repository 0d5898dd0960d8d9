"""Finding the fastest way to run a bundle on this machine: runtime, threads, the CPUs that they stay on, prompt chunks.

    tuning = tune("smollm2")
    tuning.chosen       # How(runtime="tflite", threads=4, cpus=(4, 5, 6, 7), chunk=None)

What counts is the time of a turn (`edgellm.benchmarks.turn`). Everything is compared in rounds: each measures the default and
the candidates that are left, in random order, so that what slows a whole round down is in no ratio. Two decisions are taken,
the chunk's for the runtime, threads and CPUs that won the first:

    search      rounds in which most of the candidates go, successive halving by median ratio to the base
    decision    the best one against the base in fresh rounds, since the search favours whom chance favoured

A candidate wins where the interval of its ratio clears 1 in these rounds alone. So a way that is no faster is stored in at most
ALPHA of all tunings; everywhere else the default stays.

    of placements   the turn has to be faster, and its prompt may take 3 % longer at the most
    of chunks       the prompt has to be faster, and the steps may take 3 % longer at the most
"""

from __future__ import annotations

import itertools
import math
import os
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgellm.benchmarks.figures import Figure
from edgellm.benchmarks.result import Case
from edgellm.benchmarks.spread import Ratio, ratio
from edgellm.benchmarks.turn import ANSWER, PROMPT, Turn, apart
from edgellm.bundle import Bundle
from edgellm.errors import EdgeError
from edgellm.runtimes import adapters
from edgellm.runtimes.preference import untuned
from edgellm.runtimes.threads import Topology, topology
from edgellm.runtimes.tuned import How

ALPHA = 0.01  # of both decisions together
SEARCH = ((2, 5), (3, 3), (4, 1))  # rounds, and candidates of which that many stay at least
KEPT = 3  # a third of them
BEHIND = 0.9  # times as fast as the base: below it none stays
DECISION = 20  # rounds, of which three may go wrong; after half of them it ends where the candidate is not ahead
LONGER = 1.03  # times that the part of a turn that is not decided on may take
CLUSTER = 0.8  # of the capacity of the next stronger CPU: below it another kind of core begins

Part = Literal["seconds", "prefill", "decode"]
NAMES: dict[Part, str] = {"seconds": "a turn", "prefill": "its prompt", "decode": "its steps"}


@dataclass(frozen=True)
class Timed:
    """One measurement; round 0 is each runtime's first load, which packs weights, and counts for nothing."""

    how: How
    round: int
    turn: Turn


@dataclass(frozen=True)
class Decision:
    """The best of the candidates against what there was before it.

    Attributes:
        ratio: of speeds in `part` over fresh rounds: above 1 the candidate is faster.
        rest: the same of the part that may not become slower, without an interval.
    """

    base: How
    candidate: How
    part: Part
    ratio: Ratio
    rest: float
    taken: bool

    @property
    def text(self) -> str:
        """As people read it."""
        times = f"{self.ratio.value:.2f}"
        if self.ratio.low is not None:
            times += f" ({self.ratio.low:.2f} to {self.ratio.high:.2f})"
        slower = self.ratio.verdict == "faster" and not self.taken
        but = f", but {'its prompt' if self.part == 'seconds' else 'its steps'} {self.rest:.2f} times" if slower else ""
        return f"{NAMES[self.part]} is {times} times as fast{but}"


@dataclass(frozen=True)
class Row:
    """What is known of one candidate.

    Attributes:
        turn, prefill: median seconds.
        ratio: of speeds, the default's turns to its own in the rounds of both; for the eye, since only decisions decide.
        outcome: what became of it.
    """

    how: How
    turn: float
    prefill: float
    ratio: Ratio
    rounds: int
    outcome: str


@dataclass(frozen=True)
class Tuning:
    """What came of it.

    Attributes:
        turn, default_turn: median seconds of a turn, over the rounds of both.
        failed: why a candidate could not be measured.
    """

    topology: Topology
    default: How
    chosen: How
    turn: float
    default_turn: float
    reason: str
    rows: tuple[Row, ...]
    decisions: tuple[Decision, ...]
    failed: tuple[tuple[How, str], ...]
    samples: tuple[Timed, ...]


def tune(
    path: str | os.PathLike[str],
    *,
    measure: Callable[[How], Turn] | None = None,
    machine: Topology | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda what: None,
) -> Tuning:
    """Search; nothing is stored.

    Args:
        path: the bundle's folder.
        measure: times a turn; None does it here, each in a process of its own.
        machine: where; None is this one.
        seed: of the order in rounds.
        progress: is told what is measured next.

    Raises:
        EdgeError: the bundle cannot be run as it is by default.
    """
    bundle = Bundle.open(path)
    default = untuned(bundle).how
    names = [default.runtime, *(name for name in adapters.installed(bundle) if name != default.runtime)]
    machine = topology() if machine is None else machine
    search = _Search(measure or (lambda how: apart(bundle.path, how)), default, seed, progress)
    chunks = search.first(How(name) for name in names)
    candidates = placements(machine, {name: _can_pin(name) for name in chunks})
    placed = search.better(default, [how for how in candidates if how != default], "seconds", "prefill")
    sizes, own = chunks[placed.runtime]
    chosen = search.better(placed, [replace(placed, chunk=size) for size in sizes if size != own], "prefill", "decode")
    return search.result(machine, chosen)


def placements(machine: Topology, can_pin: Mapping[str, bool]) -> list[How]:
    """Candidates of runtimes, threads and CPUs; each runtime as it is by default among them.

    Threads are the machine's default, all CPUs, physical cores, those of each kind of strong cores, what the quota allows,
    powers of two; none more than the CPUs and the quota. Pinning is to strong cores only, and starts at two threads: the
    first is the caller's own, which stays where it is.

    Args:
        can_pin: of every runtime, whether its threads can be kept on some CPUs.
    """
    quota = len(machine.cores) if machine.quota is None else machine.quota
    most = max(1, min(len(machine.cores), math.ceil(quota)))
    strong = _strong(machine)
    counts = {machine.threads, most, int(quota), _cores(machine, machine.cores), *(_cores(machine, cpus) for cpus in strong)}
    counts |= {1 << power for power in range(most.bit_length())}
    allowed = sorted(count for count in counts if 1 <= count <= most)
    found = []
    for name, pins in can_pin.items():
        found += [How(name, None if count == machine.threads else count) for count in allowed]
        for cpus in strong if pins else ():
            found += [How(name, count, cpus) for count in allowed if 2 <= count <= _cores(machine, cpus)]
    return found


def _can_pin(name: str) -> bool:
    adapter = adapters.find(name)
    return adapter is not None and bool(adapter.THREADS_AT_LOAD)


def _strong(machine: Topology) -> list[tuple[int, ...]]:
    """Sets of the CPUs that are stronger than all others: the big cluster, and with a middle one, both."""
    cpus = sorted(machine.capacity, key=lambda cpu: -machine.capacity[cpu])
    steps = [machine.capacity[weaker] / machine.capacity[cpu] for cpu, weaker in itertools.pairwise(cpus)]
    return [tuple(sorted(cpus[: count + 1])) for count, step in enumerate(steps) if step < CLUSTER]


def _cores(machine: Topology, cpus: Iterable[int]) -> int:
    return len({machine.cores[cpu] for cpu in cpus})


class _Search:
    """Rounds, and what they say."""

    def __init__(self, measure: Callable[[How], Turn], default: How, seed: int, progress: Callable[[str], None]) -> None:
        self._measure, self._default, self._seed, self._progress = measure, default, seed, progress
        self._order = random.Random(seed)
        self._base, self._round = default, 0
        self._samples: list[Timed] = []
        self._failed: dict[How, str] = {}
        self._decisions: list[Decision] = []

    def first(self, hows: Iterable[How]) -> dict[str, tuple[tuple[int, ...], int]]:
        """Load each runtime once; chunk sizes and the default one, of those that can be loaded."""
        for how in hows:
            self._time(how)
        return {each.how.runtime: (each.turn.chunks, each.turn.chunk) for each in self._samples}

    def better(self, base: How, candidates: Sequence[How], part: Part, rest: Part) -> How:
        """The best of them where it is surely faster than the base, else the base."""
        self._base, left, since = base, [*candidates], self._round
        for rounds, least in SEARCH:
            if len(left) > 1:
                self._rounds([base, *left], rounds)
                ranks = {how: self._rank(how, base, part, rest, since) for how in left if how not in self._failed}
                left = sorted((how for how, rank in ranks.items() if rank > BEHIND), key=lambda how: -ranks[how])
                left = left[: max(least, math.ceil(len(left) / KEPT))]
        if not left or (len(candidates) > 1 and self._times(left[0], base, part, since) <= 1):
            return base
        candidate, since = left[0], self._round
        self._rounds([base, candidate], DECISION // 2)
        if candidate not in self._failed and self._times(candidate, base, part, since) > 1:
            self._rounds([base, candidate], DECISION - DECISION // 2)
        if candidate in self._failed:
            return base
        figures = self._figure(base, part, since), self._figure(candidate, part, since)
        sure = ratio(*figures, self._seed, ALPHA / 2)
        beside = self._times(candidate, base, rest, since)
        taken = sure.verdict == "faster" and self._round - since == DECISION and beside >= 1 / LONGER
        self._decisions.append(Decision(base, candidate, part, sure, beside, taken))
        return candidate if taken else base

    def result(self, machine: Topology, chosen: How) -> Tuning:
        """All of it."""
        hows = dict.fromkeys(each.how for each in self._samples if each.round)
        rows = [self._row(how, chosen) for how in (hows or {self._default: None})]
        shared = self._shared(chosen, self._default)
        turn, default_turn = (
            statistics.median(self._turns(how)[number].seconds for number in shared) for how in (chosen, self._default)
        )
        return Tuning(
            topology=machine,
            default=self._default,
            chosen=chosen,
            turn=turn,
            default_turn=default_turn,
            reason=self._reason(chosen),
            rows=tuple(sorted(rows, key=lambda row: -row.ratio.value)),
            decisions=tuple(self._decisions),
            failed=tuple(self._failed.items()),
            samples=tuple(self._samples),
        )

    def _rounds(self, hows: Sequence[How], count: int) -> None:
        """Measure each of them and the default so many times, in random order."""
        for _ in range(count):
            self._round += 1
            order = [how for how in dict.fromkeys([self._default, *hows]) if how not in self._failed]
            self._order.shuffle(order)
            for how in order:
                self._time(how)

    def _time(self, how: How) -> None:
        self._progress(", ".join(filter(None, [f"round {self._round}: {how.runtime}", how.settings])))
        try:
            self._samples.append(Timed(how, self._round, self._measure(how)))
        except EdgeError as error:
            if how in (self._default, self._base):
                raise
            self._failed[how] = str(error)

    def _turns(self, how: How) -> dict[int, Turn]:
        """By round; the first loads only where there is nothing else."""
        turns = {each.round: each.turn for each in self._samples if each.how == how}
        return {number: turn for number, turn in turns.items() if number} or turns

    def _shared(self, how: How, other: How, since: int = 0) -> list[int]:
        turns, others = self._turns(how), self._turns(other)
        return [number for number in turns if number in others and number > since] or [*turns][:1]

    def _figure(self, how: How, part: Part, since: int = -1) -> Figure:
        speeds = {number: 1 / getattr(turn, part) for number, turn in self._turns(how).items() if number > since}
        return Figure(how.runtime, Case("chain", prompt=PROMPT, steps=ANSWER), "speed", "turns/s", True, speeds)

    def _times(
        self, how: How, base: How, part: Part, since: int, middle: Callable[[Iterable[float]], float] = statistics.median
    ) -> float:
        """Times as fast as the base, round by round."""
        turns, others = self._turns(how), self._turns(base)
        return middle(getattr(others[number], part) / getattr(turns[number], part) for number in self._shared(how, base, since))

    def _rank(self, how: How, base: How, part: Part, rest: Part, since: int) -> float:
        """Times as fast as the base; 0 of what the decision would refuse for the rest.

        Of two rounds it is the better one: what goes wrong in a round makes it slower.
        """
        allowed = self._times(how, base, rest, since, statistics.median_high) >= 1 / LONGER**2
        return self._times(how, base, part, since, statistics.median_high) if allowed else 0.0

    def _row(self, how: How, chosen: How) -> Row:
        turns = self._turns(how).values()
        outcome = "behind in the search"
        for decision in self._decisions:
            if how == decision.candidate:
                outcome = "taken" if decision.taken else "not taken"
        if how in (chosen, self._default):
            outcome = "chosen" if how == chosen else "the default"
        return Row(
            how,
            statistics.median(turn.seconds for turn in turns),
            statistics.median(turn.prefill for turn in turns),
            ratio(self._figure(self._default, "seconds"), self._figure(how, "seconds"), self._seed, ALPHA),
            len(turns),
            "failed" if how in self._failed else outcome,
        )

    def _reason(self, chosen: How) -> str:
        taken = [decision.text for decision in self._decisions if decision.taken]
        return "; ".join(taken) if chosen != self._default else "nothing was surely faster than the default"
