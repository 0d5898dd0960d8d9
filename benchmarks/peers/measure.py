"""The plan and the run: every engine in a child of its own, round after round, in shuffled order.

A drift of the machine (heat, a neighbour) then falls on all engines alike, and the spread of a ratio within the rounds, where
both sides had the same machine, shows what of it is left.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm._typed import build
from edgellm._version import __version__
from edgellm.benchmarks.machine import machine
from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers import quality, quiet
from edgellm.benchmarks.peers.child import Done, Job
from edgellm.benchmarks.peers.engine import EngineId
from edgellm.benchmarks.peers.lanes import describe, folder_of, label
from edgellm.benchmarks.result import Case, Lane, Moment, Quality, Run, Sample, Settings
from edgellm.errors import EdgeError, InferenceError

CHILD_SECONDS = 1800.0
DEFAULT = Settings(threads=(1, 2), prompts=(512,), depths=(32, 1024), decode=64, trials=5)


@dataclass(frozen=True)
class Prepared:
    """One engine's file of one model."""

    model: str
    engine: EngineId
    path: Path


@dataclass(frozen=True)
class Model:
    """A source, its ids of the text, and the source's own logits over them."""

    name: str
    source: Path
    folder: Path
    ids: list[int]
    reference: Path


def open_model(name: str, source: Path, positions: int) -> Model:
    """Tokenize the text and run the source over it (once; kept in the cache)."""
    folder = folder_of(source)
    ids = quality.text_ids(source)[:positions]
    return Model(name, source, folder, ids, quality.reference(source, ids, folder))


def prepare(model: Model, engines: Sequence[EngineId], progress: Callable[[str], None]) -> tuple[list[Prepared], list[str]]:
    """The engines' files, and what is left out with the reason."""
    made, left_out = [], []
    for engine in engines:
        progress(f"{model.name}: prepare {engine}")
        module = peers.peer(engine.peer)
        try:
            peers.versions(module)
            path = module.prepare(engine.variant, model.source, model.folder)
        except EdgeError as error:
            left_out.append(f"{model.name}, {engine}: {error}")
            continue
        made.append(Prepared(model.name, engine, path))
    return made, left_out


def cases(settings: Settings) -> tuple[Case, ...]:
    """What is timed after a load, in the order in which a child does it."""
    prefills = [Case("prefill", prompt=prompt) for prompt in settings.prompts]
    return (*prefills, *(Case("decode", depth=depth, steps=settings.decode) for depth in settings.depths))


def measure(
    models: Sequence[Model],
    prepared: Sequence[Prepared],
    left_out: Sequence[str],
    settings: Settings,
    seen: Moment,
    command: str,
    progress: Callable[[str], None],
) -> Run:
    """Run everything: every sample, and how close each file is to its source."""
    started, clock = dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), time.perf_counter()
    by_name = {model.name: model for model in models}
    lanes: dict[str, Lane] = {}
    paths: dict[str, Path] = {}
    notes = list(left_out)
    for each in prepared:
        progress(f"{each.model}: closeness of {each.engine}")
        model = by_name[each.model]
        found = describe(each.engine, each.path, model.name, model.source, settings.threads)
        close, failed = _closeness(model, max(found, key=lambda lane: lane.threads), each.path)
        if close is None and failed is None:
            notes.append(f"{model.name}, {each.engine}: closeness to the source, because it shows no logits")
        lanes |= {lane.id: dataclasses.replace(lane, quality=close, failed=failed) for lane in found}
        paths |= {lane.id: each.path for lane in found}
    samples: list[Sample] = []
    order = random.Random(settings.seed)
    for number in range(1, settings.trials + 1):
        for threads in settings.threads:
            for model in models:
                queue = [lane for lane in lanes.values() if (lane.model, lane.threads) == (model.name, threads)]
                order.shuffle(queue)
                for lane in queue:
                    progress(f"round {number} of {settings.trials}: {lane.model} {label(lane)}, {threads} threads")
                    job = Job("speed", lane, str(paths[lane.id]), tuple(model.ids), cases(settings))
                    try:
                        samples += _timed(job, number, time.perf_counter() - clock)
                    except InferenceError as error:
                        lanes[lane.id] = dataclasses.replace(lane, failed=error.what)
    return Run(
        started=started,
        command=command,
        version=__version__,
        machine=machine(),
        settings=settings,
        lanes=tuple(lanes.values()),
        samples=tuple(samples),
        moments=(seen,),
        notes=tuple(notes),
    )


def _closeness(model: Model, lane: Lane, path: Path) -> tuple[Quality | None, str | None]:
    """How close a file is to its source, or why that could not be measured; neither of an engine that shows no logits."""
    try:
        done, _ = run_child(Job("quality", lane, str(path), tuple(model.ids), reference=str(model.reference)))
    except InferenceError as error:
        return None, error.what
    return done.quality, None


def _timed(job: Job, number: int, at: float) -> list[Sample]:
    """The samples of a child that starts now. Raises InferenceError."""
    done, others = run_child(job)
    lane = job.lane.id
    return [
        dataclasses.replace(each, lane=lane, round=number * each.round, at=at + each.at, others=others) for each in done.samples
    ]


def run_child(job: Job) -> tuple[Done, float | None]:
    """A job in a fresh process: what came of it, and how many processors other processes kept busy meanwhile.

    Raises:
        InferenceError: it failed, or takes too long; the run goes on without it.
    """
    with tempfile.TemporaryDirectory(prefix="edgellm-peers-") as scratch:
        job_file, result = Path(scratch) / "job.json", Path(scratch) / "result.json"
        job_file.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
        command = [sys.executable, "-m", "edgellm.benchmarks.peers.child", str(job_file), str(result)]
        before, own, started = quiet.busy_seconds(), _children_seconds(), time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=CHILD_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise InferenceError(f"nothing after {CHILD_SECONDS:.0f} s", where=label(job.lane)) from error
        after, wall = quiet.busy_seconds(), time.perf_counter() - started
        if done.returncode != 0 or not result.is_file():
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise InferenceError(last, where=label(job.lane))
        found = build(Done, json.loads(result.read_text(encoding="utf-8")))
    if before is None or after is None:
        return found, None
    return found, max(0.0, (after - before - (_children_seconds() - own)) / wall)


def _children_seconds() -> float:
    """CPU seconds of the child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system
