"""What happens in a process of its own: one lane is loaded and timed, or the machine itself is.

Nothing else runs in the process, so its peak of memory is the engine's, Python's and numpy's. It says what it does in JSON
lines on its standard output, which it first moves out of the way of native libraries: the name of each case, each sample, or
the error that a user can mend.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from edgellm import errors
from edgellm._typed import build
from edgellm.benchmarks import conditions, energy, machine, own
from edgellm.benchmarks.cases import DIGITS, Cases, Timed, Watch, Where, agreement, nothing, observe
from edgellm.benchmarks.peers import quiet
from edgellm.benchmarks.result import Case, Sample
from edgellm.bundle import Bundle
from edgellm.errors import EdgeError, InferenceError
from edgellm.runtimes.threads import allowed_cpus

CHILD = "import sys; from edgellm.benchmarks.child import main; main(sys.argv[1])"
INTERRUPTED = 130
CHECKED = 32  # tokens before, and steps, of the check that steps are right
COLD_SHARE = 0.5  # of its files that storage has to deliver for a load to have been cold
Task = Literal["check", "cold", "round", "sustained"]


@dataclass(frozen=True)
class Job:
    """What the process is to do.

    Attributes:
        task: check: load it, so that what a runtime packs at its first load is packed, and look whether its steps are right.
            cold: load it from storage, up to the first token. round: load it, and time the cases in shuffled order.
            sustained: decode for `seconds`.
        path: the bundle's folder.
        cases: of "round"; of "cold" the two that it times.
        origin: when the run began, by time.perf_counter, which all processes of a machine share.
    """

    task: Task
    lane: str
    path: str
    runtime: str
    threads: int
    context: int
    ids: tuple[int, ...]
    cases: tuple[Case, ...] = ()
    round: int = 0
    origin: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Heard:
    """What a process said."""

    samples: tuple[Sample, ...]
    agreement: float | None = None


def run(job: Job, progress: Callable[[str], None]) -> Heard:
    """Do a job in a fresh process.

    Raises:
        EdgeError: as the process met it.
        InferenceError: the process died.
    """
    quietly = subprocess.DEVNULL
    stderr = quietly if sys.stderr is None else None
    # -P: no module from the folder where the user stands, which may be a bundle that somebody else made
    command = [sys.executable, "-P", "-c", CHILD, json.dumps(dataclasses.asdict(job))]
    with subprocess.Popen(command, stdin=quietly, stdout=subprocess.PIPE, stderr=stderr, encoding="utf-8") as process:
        try:
            heard = _listen(process.stdout, progress)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        what = f"the process that measured it ended with status {process.returncode}"
        raise InferenceError(what, where=job.path, fix="free memory and try again")
    return heard


def _listen(lines: IO[str] | None, progress: Callable[[str], None]) -> Heard:
    samples, agreed = [], None
    for line in lines or ():
        said = json.loads(line)
        if "case" in said:
            progress(said["case"])
        elif "error" in said:
            kind = getattr(errors, said["error"])
            raise kind(said["what"], where=said["where"], fix=said["fix"])
        elif "sample" in said:
            samples.append(build(Sample, said["sample"]))
        else:
            agreed = said["agreement"]
    return Heard(tuple(samples), agreed)


def main(asked: str) -> None:
    """What the fresh process does."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open("wb") as sink:
        os.dup2(sink.fileno(), 1)

    def say(**said: Any) -> None:
        print(json.dumps(said), file=ours, flush=True)

    job = build(Job, json.loads(asked))
    try:
        for said in _do(job):
            say(**said)
    except EdgeError as error:
        say(error=type(error).__name__, what=error.what, where=error.where, fix=error.fix)
    except KeyboardInterrupt:  # it reached the parent too, which says so
        sys.exit(INTERRUPTED)


def _do(job: Job) -> Iterator[dict[str, Any]]:
    bundle = Bundle.open(job.path)
    bundle.ensure_verified()  # hashing is done once a machine, not once a load
    with contextlib.ExitStack() as stack:
        counter = energy.find_counter()
        watch = _watch(None if counter is None else stack.enter_context(counter))
        if job.task == "cold":
            yield from map(_said, _cold(job, bundle, watch))
            return
        if job.task == "round":
            yield {"case": "load"}
        loaded, engine = _load(job, bundle, watch, Case("load"))
        stack.callback(engine.close)
        if job.task == "check":
            yield {"case": "its tokens"}
            count = min(CHECKED, engine.session.max_context // 2)
            yield {"agreement": agreement(engine, list(job.ids[:count]), count)}
        elif job.task == "sustained":
            for sample in Cases(engine, job.ids, watch, _where(job)).sustained(job.seconds, engine.session.max_context):
                yield {"case": f"sustained, {sample.at:,.0f} s"}
                yield _said(sample)
        else:
            yield _said(loaded)
            yield from _round(job, bundle, engine, watch)


def _round(job: Job, bundle: Bundle, engine: own.BundleEngine, watch: Watch) -> Iterator[dict[str, Any]]:
    from edgellm.benchmarks.chain import Chain

    chain = Chain(bundle, engine.session, job.ids).run if any(case.kind == "chain" for case in job.cases) else None
    cases = Cases(engine, job.ids, watch, _where(job), chain)
    longest = max(job.cases, key=lambda case: max(case.prompt, case.depth))
    cases.run(longest)  # buffers grow to their size, and code is paged in: what only the first call of a process pays
    for case in random.Random(f"{job.lane} {job.round}").sample(job.cases, len(job.cases)):
        yield {"case": case.name}
        yield _said(cases.run(case))


def _cold(job: Job, bundle: Bundle, watch: Watch) -> Iterator[Sample]:
    """Load from storage, and up to the first token; nothing where its files could not be driven out of memory."""
    load, first = job.cases
    machine.forget_files(own.files(bundle))
    before = machine.read_bytes()
    loaded, engine = _load(job, bundle, watch, load)
    answered = Cases(engine, job.ids, watch, _where(job)).run(first)
    after = machine.read_bytes()
    engine.close()
    size = sum(bundle.files[name].size for name in bundle.files_of(bundle.graphs[job.runtime]))
    if before is not None and after is not None and after - before >= COLD_SHARE * size:
        yield loaded
        yield dataclasses.replace(answered, seconds=loaded.seconds + answered.seconds)


def _load(job: Job, bundle: Bundle, watch: Watch, case: Case) -> tuple[Sample, own.BundleEngine]:
    """Load the lane's engine."""
    engines: list[own.BundleEngine] = []

    def work() -> Timed:
        started = watch.now()
        engines.append(own.open_engine(bundle, runtime=job.runtime, threads=job.threads, context=job.context))
        return Timed(round(watch.now() - started, DIGITS))

    return observe(watch, _where(job), case, work), engines[0]


def _where(job: Job) -> Where:
    return Where(job.lane, job.round, job.origin)


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


def _said(sample: Sample) -> dict[str, Any]:
    return {"sample": dataclasses.asdict(sample)}
