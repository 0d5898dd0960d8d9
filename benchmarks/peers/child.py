"""What one child process does: load one engine, and either time it or compare it with the source.

    python -m edgellm.benchmarks.peers.child job.json result.json

Nothing else runs in the process, so its peak RSS is the engine's (and Python's and numpy's). The result goes to a file,
because native libraries write to standard output as they like.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgellm._typed import build
from edgellm.benchmarks.peers.engine import Engine, OwnLoop
from edgellm.benchmarks.peers.timing import load_engine, time_case
from edgellm.benchmarks.result import Case, Lane, Quality, Sample

PREFILLS = 3  # the first one allocates, and is shown as the warm-up


@dataclass(frozen=True)
class Job:
    """What to do.

    Attributes:
        task: "speed" with `cases` set, or "quality" with `reference` set.
        lane, path: the engine and its file.
        ids: the text's ids.
        cases: what is timed, in this order.
        reference: .npy of the source's logits over `ids`.
    """

    task: Literal["speed", "quality"]
    lane: Lane
    path: str
    ids: tuple[int, ...]
    cases: tuple[Case, ...] = ()
    reference: str = ""

    @property
    def context(self) -> int:
        """Tokens that the longest case needs."""
        return max([case.prompt + case.depth + case.steps for case in self.cases] or [len(self.ids)]) + 1


@dataclass(frozen=True)
class Done:
    """What came of it.

    Attributes:
        samples: without lane; of round 0 what is a warm-up, else of round 1; `at` in seconds from the start of the load.
        quality: None of an engine that shows no logits.
    """

    samples: tuple[Sample, ...] = ()
    quality: Quality | None = None


def run(job: Job) -> Done:
    """Do it."""
    engine, load = load_engine(job.lane, Path(job.path), job.context)
    try:
        if job.task == "quality":
            return Done(quality=_quality(engine, job))
        started = time.perf_counter() - load.seconds
        return Done((dataclasses.replace(load, round=1), *_timed(engine, job, started)))
    finally:
        engine.close()


def _timed(engine: Engine | OwnLoop, job: Job, started: float) -> Iterator[Sample]:
    for case in job.cases:
        for number in range(PREFILLS if case.kind == "prefill" else 1):
            counts = number > 0 or case.kind != "prefill"
            at = time.perf_counter() - started
            yield dataclasses.replace(time_case(engine, case, job.ids), round=int(counts), at=at)


def _quality(engine: Engine | OwnLoop, job: Job) -> Quality | None:
    if not isinstance(engine, Engine):
        return None
    from edgellm.benchmarks.peers.quality import compare, digest

    source = np.load(job.reference, mmap_mode="r")
    return compare(source, engine.logits(job.ids), digest(job.ids))


def main() -> None:
    """Read a job, write its result."""
    job_file, result_file = map(Path, sys.argv[1:3])
    job = build(Job, json.loads(job_file.read_text(encoding="utf-8")))
    result_file.write_text(json.dumps(dataclasses.asdict(run(job))), encoding="utf-8")


if __name__ == "__main__":
    main()
