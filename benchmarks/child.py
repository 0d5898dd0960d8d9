"""What happens in a process of its own: one lane is loaded, and timed or looked at.

Nothing else runs in the process, so its peak of memory is the engine's, Python's and numpy's. It answers with the name of each
case, and with each sample.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgellm._typed import build
from edgellm.benchmarks import conditions, energy, fresh, machine, opening
from edgellm.benchmarks.cases import DIGITS, Cases, Engine, Mark, OwnLoop, Timed, Watch, Where, agreement, nothing, observe
from edgellm.benchmarks.fresh import Said
from edgellm.benchmarks.opening import Opened
from edgellm.benchmarks.peers import quiet
from edgellm.benchmarks.result import Case, Lane, Quality, Sample
from edgellm.errors import EdgeError
from edgellm.runtimes.threads import allowed_cpus

CHECKED = 32  # tokens before, and steps, of the check that steps are right
COLD_SHARE = 0.5  # of its files that storage has to deliver for a load to have been cold
Task = Literal["check", "quality", "cold", "round", "sustained"]


@dataclass(frozen=True)
class Job:
    """What the process is to do.

    Attributes:
        task: check: load it, so that what a runtime packs at its first load is packed, and look whether its steps are right.
            quality: compare it with the source. cold: load it from storage, up to the first token. round: load it, and time
            the cases in shuffled order, the chain last. sustained: decode for `seconds`.
        path: of the lane's file or folder.
        context: tokens that the longest case needs.
        ids: of a text.
        cases: of "round"; of "cold" the two that it times.
        seed: of the order of cases.
        origin: when the run began, by time.perf_counter, which all processes of a machine share.
        reference: .npy of the source's logits over `ids`, of "quality".
    """

    task: Task
    lane: Lane
    path: str
    context: int
    ids: tuple[int, ...]
    cases: tuple[Case, ...] = ()
    round: int = 0
    seed: int = 0
    origin: float = 0.0
    seconds: float = 0.0
    reference: str = ""


@dataclass(frozen=True)
class Heard:
    """What a process said beside its samples: of which tokens it is sure, how close it is, what could not be measured."""

    agreement: float | None = None
    quality: Quality | None = None
    notes: tuple[str, ...] = ()


def run(job: Job, progress: Callable[[str], None], keep: Callable[[Sample], None]) -> Heard:
    """Do a job in a fresh process; `keep` gets each sample when it is made.

    Raises:
        EdgeError: as the process met it.
        InferenceError: the process died.
    """
    agreed: float | None = None
    quality: Quality | None = None
    notes: list[str] = []

    def hear(said: Said) -> None:
        nonlocal agreed, quality
        if "case" in said:
            progress(said["case"])
        elif "sample" in said:
            keep(build(Sample, said["sample"]))
        elif "note" in said:
            notes.append(said["note"])
        elif "quality" in said:
            quality = build(Quality, said["quality"])
        else:
            agreed = said["agreement"]

    fresh.run(__name__, dataclasses.asdict(job), hear, where=job.path)
    return Heard(agreed, quality, tuple(notes))


def work(asked: object) -> Iterator[Said]:
    """What the fresh process does."""
    job = build(Job, asked)
    opening.prepare(job.lane, Path(job.path))
    with contextlib.ExitStack() as stack:
        counter = energy.find_counter(minutes=job.task == "sustained")
        watch = _watch(None if counter is None else stack.enter_context(counter))
        if job.task == "cold":
            yield from _cold(job, watch)
            return
        if job.task == "round":
            yield {"case": "load"}
        loaded, opened = _load(job, watch, Case("load"))
        stack.callback(opened.engine.close)
        if job.task == "round":
            yield _said(loaded)
            yield from _round(job, opened, watch)
        elif job.task == "sustained" and isinstance(opened.engine, OwnLoop):
            yield {"note": f"{job.lane.id}: sustained decoding, because it writes tokens in a loop of its own"}
        elif job.task == "sustained":
            for sample in Cases(opened.engine, job.ids, watch, _where(job)).sustained(job.seconds, opened.context):
                yield {"case": f"sustained, {sample.at:,.0f} s"}
                yield _said(sample)
        else:
            yield from _looked_at(job, opened)


def _looked_at(job: Job, opened: Opened) -> Iterator[Said]:
    """What the lane says, of an engine that shows its logits.

    One with a loop of its own takes other ways to its logits than to its tokens: those are checked where they are timed.
    """
    if not isinstance(opened.engine, Engine):
        return
    if job.task == "check":
        if isinstance(opened.engine, OwnLoop):
            return
        yield {"case": "its tokens"}
        count = min(CHECKED, opened.context // 2)
        yield {"agreement": agreement(opened.engine, list(job.ids[:count]), count)}
    else:
        from edgellm.benchmarks.peers import quality

        yield {"case": "its closeness to the source"}
        yield {"quality": dataclasses.asdict(quality.judge(opened.engine, job.ids, Path(job.reference)))}


def _round(job: Job, opened: Opened, watch: Watch) -> Iterator[Said]:
    cases = Cases(opened.engine, job.ids, watch, _where(job), opened.chain(job.ids))
    wanted = [case for case in job.cases if case.state != "cached" or not isinstance(opened.engine, OwnLoop)]
    if not machine.forget_peak() and machine.peak_rss() is not None:
        yield {"note": f"{job.lane.id}: peak memory of each case: this system tells only that of a whole process (see load)"}
    longest = max(wanted, key=lambda case: max(case.prompt, case.depth))
    made: list[Sample] = []
    cases.run(longest)  # buffers grow to their size, and code is paged in: what only the first call of a process pays
    order = random.Random(f"{job.seed} {job.lane.id} {job.round}").sample(wanted, len(wanted))
    for case in sorted(order, key=lambda case: case.kind == "chain"):  # it brings a tokenizer, which is nothing of the others'
        yield {"case": case.name}
        try:
            made.append(cases.run(case))
        except EdgeError as error:
            if case.kind != "chain":
                raise
            yield {"note": f"{job.lane.id}: {case.name}: {error}"}  # its text has no way, and everything else is as it was
        else:
            yield _said(made[-1])
    if job.round == 0 and isinstance(opened.engine, OwnLoop):  # once: that later rounds say the same is looked at elsewhere
        yield {"case": "its tokens"}
        yield {"agreement": cases.agreement(made)}


def _cold(job: Job, watch: Watch) -> Iterator[Said]:
    """Load from storage, and up to the first token; nothing where its files could not be driven out of memory."""
    load, first = job.cases
    files = opening.files(job.lane, Path(job.path))
    machine.forget_files(files)
    before = machine.read_bytes()
    loaded, opened = _load(job, watch, load)
    answered = Cases(opened.engine, job.ids, watch, _where(job)).run(first)
    after = machine.read_bytes()
    opened.engine.close()
    if before is not None and after is not None and after - before >= COLD_SHARE * job.lane.size:
        yield _said(loaded)
        yield _said(_together(loaded, answered))
    else:
        yield {"note": f"{job.lane.id}: a cold load, because its files could not be driven out of memory"}


def _together(loaded: Sample, answered: Sample) -> Sample:
    """The first token with the load before it, in every figure."""

    def sum_of(*values: float | None) -> float | None:
        known = [value for value in values if value is not None]
        return round(sum(known), 6) if len(known) == len(values) else None

    seconds = loaded.seconds + answered.seconds
    busy = sum_of(*(None if each.others is None else each.others * each.seconds for each in (loaded, answered)))
    return dataclasses.replace(
        answered,
        at=loaded.at,
        seconds=seconds,
        cpu=sum_of(loaded.cpu, answered.cpu),
        joules=sum_of(loaded.joules, answered.joules),
        rss=max((each.rss for each in (loaded, answered) if each.rss is not None), default=None),
        others=None if busy is None else round(busy / seconds, 3),
    )


def _load(job: Job, watch: Watch, case: Case) -> tuple[Sample, Opened]:
    """Load the lane's engine; its packages are imported before, and timed apart."""
    started = watch.now()
    opening.import_code(job.lane)
    imported, made = watch.now() - started, list[Opened]()

    def work(mark: Mark) -> Timed:
        begun = watch.now()
        made.append(opening.open_lane(job.lane, Path(job.path), job.context))
        return Timed(round(watch.now() - begun, DIGITS), parts={"import": round(imported, DIGITS)})

    return observe(watch, _where(job), case, work), made[0]


def _where(job: Job) -> Where:
    return Where(job.lane.id, job.round, job.origin)


def _watch(counter: energy.Counter | None) -> Watch:
    """This process on this machine."""
    cpus = allowed_cpus()
    return Watch(
        busy=quiet.busy_seconds,
        joules=nothing if counter is None else counter.joules,
        peak=machine.forget_peak,
        rss=machine.peak_rss,
        pss=machine.pss,
        celsius=conditions.celsius,
        mhz=lambda: conditions.mhz(cpus),
    )


def _said(sample: Sample) -> Said:
    return {"sample": dataclasses.asdict(sample)}
