"""A benchmark run: lanes side by side, round after round in shuffled order, each in a process of its own.

    run = measure([Bundle.open("smollm2-int4")], ["onnx", "tflite"], Settings(trials=5), command="...")

What a machine does in the meantime (heat, a neighbour) then falls on all lanes alike. Between the lanes of a round the machine
itself is measured, with the same threads: what it reads from memory, what it multiplies.
"""

from __future__ import annotations

import datetime as dt
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenizers import Tokenizer

from edgellm._version import __version__
from edgellm.benchmarks import child, conditions, doubts, emulation, energy, limit, own, texts
from edgellm.benchmarks.cases import TEMPLATE, plan
from edgellm.benchmarks.child import Heard, Job
from edgellm.benchmarks.machine import machine
from edgellm.benchmarks.result import Case, Lane, Moment, Probe, Quality, Run, Sample, Settings
from edgellm.bundle import Bundle
from edgellm.errors import EdgeError, UsageError
from edgellm.runtimes.threads import allowed_cpus

LOOK = 1.0  # seconds that the machine is watched before the first round and after the last
PROBE = 0.3  # seconds of a probe


@dataclass(frozen=True)
class Entry:
    """A lane on its way: what it is, where it lies, what is measured of it.

    Attributes:
        room: tokens that its context may have.
        ids: of the text that it is given.
        reference: .npy of the source's logits over `ids`, where it is compared with one.
    """

    lane: Lane
    path: Path
    room: int
    cases: tuple[Case, ...]
    ids: tuple[int, ...]
    reference: Path | None = None


@dataclass
class Bench:
    """A run in the making.

    Attributes:
        origin: when it began, by time.perf_counter.
        counts: how often the machine has throttled before.
        failed: lanes that go no further, and why.
    """

    settings: Settings
    entries: list[Entry]
    progress: Callable[[str], None]
    origin: float = field(default_factory=time.perf_counter)
    samples: list[Sample] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    agreements: dict[str, float] = field(default_factory=dict)
    qualities: dict[str, Quality] = field(default_factory=dict)
    failed: dict[str, EdgeError] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    counts: Mapping[str, int] = field(default_factory=conditions.throttle_counts)
    finished: int = -1  # the last round that was measured whole

    def go(self) -> bool:
        """Measure everything; False where the user interrupted it after a round that counts."""
        try:
            self.look()
            for entry in self.entries:
                self.do(entry, "check", 0)
                self.judge(entry)
            order = random.Random(self.settings.seed)
            for number in range(self.settings.trials + 1):
                self.round(number, order)
            for entry in self.entries if self.settings.sustained else ():
                self.do(entry, "sustained", 1)
            self.look()
        except KeyboardInterrupt:
            if self.finished < 1:
                raise
            self.samples = [each for each in self.samples if each.round <= self.finished or each.case.kind == "sustained"]
            return False
        return True

    def judge(self, entry: Entry) -> None:
        """How close the lane is to the source; a file that is there with several numbers of threads is compared once."""
        if entry.reference is None:
            return
        lane = entry.lane
        for other, quality in self.qualities.items():
            twin = next(each for each in self.entries if each.lane.id == other)
            if replace(twin.lane, id=lane.id, threads=lane.threads) == lane and twin.reference == entry.reference:
                self.qualities[lane.id] = quality
                return
        self.do(entry, "quality", 0)
        if lane.id not in self.qualities and lane.id not in self.failed:
            self.notes.append(f"{lane.id}: closeness to the source, because it shows no logits")

    def round(self, number: int, order: random.Random) -> None:
        """Every lane once, and the machine itself with every number of threads."""
        there = [entry for entry in self.entries if entry.lane.id not in self.failed]
        queue: list[Entry | int] = [*there, *sorted({entry.lane.threads for entry in there})]
        order.shuffle(queue)
        for each in queue:
            if isinstance(each, int):
                self.probe(each, number)
            else:
                if any(case.state == "cold" for case in each.cases):
                    self.do(each, "cold", number)
                self.do(each, "round", number)
        self.finished = number
        self.look(0)

    def do(self, entry: Entry, task: child.Task, number: int) -> None:
        """One lane's process; an error ends the lane and not the run."""
        lane = entry.lane
        if lane.id in self.failed:
            return

        def show(case: str) -> None:
            prefix = f"round {number} of {self.settings.trials}, " if number else "warm-up, " if task == "round" else ""
            self.progress(f"{prefix}{lane.id}: {case}")

        show({"check": "the first load", "cold": "a cold load", "quality": "its closeness"}.get(task, task))
        cases = tuple(case for case in entry.cases if (case.state == "cold") == (task == "cold"))
        need = max(max(1, case.prompt, case.depth) + case.steps for case in entry.cases) + TEMPLATE
        context = len(entry.ids) if task == "quality" else max(need, 2 * child.CHECKED)
        job = Job(
            task=task,
            lane=replace(lane, fidelity=None),
            path=str(entry.path),
            context=min(context, entry.room),
            ids=entry.ids,
            cases=cases,
            round=number,
            seed=self.settings.seed,
            origin=self.origin,
            seconds=self.settings.sustained,
            reference="" if entry.reference is None else str(entry.reference),
        )
        try:
            heard: Heard = child.run(job, show, self.samples.append)
        except EdgeError as error:
            if task == "sustained":  # the rounds before it are whole
                self.notes.append(f"{lane.id}: sustained decoding: {error}")
            else:
                self.failed[lane.id] = error
            return
        self.notes += heard.notes
        if heard.agreement is not None:
            self.agreements[lane.id] = heard.agreement
        if heard.quality is not None:
            self.qualities[lane.id] = heard.quality

    def probe(self, threads: int, number: int) -> None:
        """What the machine can do with so many threads."""
        self.progress(f"the machine itself, {threads} threads")
        at = round(time.perf_counter() - self.origin, 3)
        self.probes.append(Probe("bandwidth", threads, number, at, limit.bandwidth(threads, PROBE)))
        products = limit.int8_products(threads, PROBE)
        if products is not None:
            self.probes.append(Probe("int8", threads, number, at, products))

    def look(self, seconds: float = LOOK) -> None:
        """The machine while nothing of ours runs; with 0 seconds nobody can tell what others do."""
        at = round(time.perf_counter() - self.origin, 3)
        self.moments.append(conditions.moment(at, allowed_cpus(), seconds=seconds, since=self.counts))


def measure(
    bundles: Sequence[Bundle],
    runtimes: Sequence[str] = (),
    settings: Settings | None = None,
    *,
    command: str,
    chat: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Run:
    """Measure bundles in each of their runtimes, with each number of threads.

    Args:
        runtimes: none means each that is installed.
        command: as the run's file is to have it.
        chat: whether the whole chain of a text is timed.
        progress: is told what is being done.

    Raises:
        BundleError, RuntimeUnavailable, ResourceError: nothing of what was asked for can be measured.
        UsageError: a number that makes no sense, or no case fits a context.
    """
    settings = settings or Settings()
    entries, notes = entries_of(bundles, runtimes, settings, chat=chat)
    return go(entries, settings, command=command, progress=progress, notes=notes)


def entries_of(
    bundles: Sequence[Bundle], runtimes: Sequence[str], settings: Settings, *, chat: bool = True
) -> tuple[list[Entry], list[str]]:
    """The lanes of bundles, and what of the settings does not fit them; errors as of `measure`."""
    _check(settings)
    entries, notes = list[Entry](), list[str]()
    for bundle, label in zip(bundles, labels([bundle.path for bundle in bundles]), strict=True):
        bundle.ensure_verified()  # hashing is done once a machine, not once a load
        room, ids = bundle.spec.max_context, text_ids(bundle)
        cases, missing = plan(settings, room, chat=chat)
        lanes = own.lanes(bundle, label, runtimes, settings.threads)
        entries += [Entry(lane, bundle.path, room, cases, ids) for lane in lanes]
        notes += missing
    return entries, notes


def go(
    entries: Sequence[Entry],
    settings: Settings,
    *,
    command: str,
    progress: Callable[[str], None] = lambda step: None,
    notes: Sequence[str] = (),
) -> Run:
    """Measure lanes that are prepared; what `measure` says of errors holds."""
    counter = energy.find_counter(minutes=settings.sustained > 0)
    started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    bench = Bench(settings, [*entries], progress)
    if counter is None:
        bench.notes.append("energy: this host offers no counter that a case is long enough for")
    virtual = emulation.virtual()
    if virtual:
        bench.notes.append(virtual)
    complete = bench.go()
    if len(bench.failed) == len(entries):
        raise next(iter(bench.failed.values()))
    run = Run(
        started=started,
        command=command,
        version=__version__,
        machine=machine(),
        settings=settings,
        lanes=tuple(_finished(entry.lane, bench) for entry in entries),
        samples=tuple(bench.samples),
        probes=tuple(bench.probes),
        moments=tuple(bench.moments),
        energy=None if counter is None else counter.name,
        complete=complete,
        notes=tuple(dict.fromkeys([*notes, *bench.notes])),
    )
    return doubts.judged(run)


def labels(paths: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, with as many of those above it as it takes to tell all of them apart.

    Raises:
        UsageError: a folder is there twice.
    """
    resolved = [path.resolve() for path in paths]
    parts = [path.parts for path in resolved]
    for count in range(1, max(map(len, parts), default=1) + 1):
        found = ["/".join(each[-count:]) for each in parts]
        if len(set(found)) == len(found):
            return found
    twice = next(path for path, found in zip(paths, resolved, strict=True) if resolved.count(found) > 1)
    raise UsageError("the same bundle twice", where=twice, fix="give it once")


def text_ids(bundle: Bundle) -> tuple[int, ...]:
    """Token ids of a text of our own, by the bundle's tokenizer; ids that the graph does not have are left out."""
    tokenizer = Tokenizer.from_file(str(bundle.file(bundle.text.tokenizer)))
    tokenizer.no_truncation()
    ids = tokenizer.encode(texts.own()[0], add_special_tokens=False).ids
    return tuple(each for each in ids if each < bundle.spec.vocab_size) or (0,)


def _finished(lane: Lane, bench: Bench) -> Lane:
    error = bench.failed.get(lane.id)
    return replace(
        lane,
        agreement=bench.agreements.get(lane.id),
        quality=bench.qualities.get(lane.id),
        failed=None if error is None else str(error),
    )


def _check(settings: Settings) -> None:
    numbers = {"--prompt": settings.prompts, "--decode": (settings.decode,), "--trials": (settings.trials,)}
    for name, values in numbers.items():
        if not values or min(values) < 1:
            raise UsageError(f"{min(values, default='nothing')} is too small", where=name, fix="use 1 or more")
    if not settings.depths or min(settings.depths) < 0 or settings.sustained < 0:
        raise UsageError("a negative number", where="--depth or --sustained", fix="use 0 or more")
