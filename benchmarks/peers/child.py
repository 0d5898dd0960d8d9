"""What one child process does: load one engine, and either time it or compare it with the source.

    python -m edgellm.benchmarks.peers.child job.json result.json

Nothing else runs in the process, so its peak RSS is the engine's (and Python's and numpy's). The result goes to a file,
because native libraries write to standard output as they like.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgellm.benchmarks.machine import peak_rss
from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers.engine import Engine


@dataclass(frozen=True)
class Job:
    """What to do.

    Attributes:
        task: "speed", or "quality" with `reference` set.
        peer, path: the engine and its file.
        ids: the text's ids; they are repeated as far as a case needs.
        prefill: tokens of the timed prefill.
        depths: contexts after which steps are timed.
        steps: steps timed after each.
        reference: .npy of the source's logits over `ids`.
    """

    task: Literal["speed", "quality"]
    peer: str
    path: str
    threads: int
    ids: list[int]
    prefill: int = 512
    depths: tuple[int, ...] = (32, 1024)
    steps: int = 64
    reference: str = ""

    @property
    def context(self) -> int:
        """Tokens that the longest case needs."""
        if self.task == "quality":
            return len(self.ids) + 1
        return max(self.prefill, max(self.depths, default=0) + self.steps) + 1


def run(job: Job) -> dict[str, Any]:
    """Do it: plain JSON values."""
    started = time.perf_counter()
    module = peers.peer(job.peer)
    engine = module.open_engine(Path(job.path), threads=job.threads, context=job.context)
    loaded = time.perf_counter() - started
    try:
        if job.task == "quality":
            from edgellm.benchmarks.peers.quality import compare

            source = np.load(job.reference, mmap_mode="r")
            return dataclasses.asdict(compare(source, engine.logits(job.ids)))
        return {"load_ms": loaded * 1000, **_speed(engine, job), "rss": peak_rss()}
    finally:
        engine.close()


def _speed(engine: Engine, job: Job) -> dict[str, float]:
    ids = np.resize(np.asarray(job.ids), job.context).tolist()
    prompt = ids[: job.prefill]
    rates = []
    for trial in range(3):  # the first one allocates
        engine.reset()
        started = time.perf_counter()
        engine.prefill(prompt)
        elapsed = time.perf_counter() - started
        if trial:
            rates.append(len(prompt) / elapsed)
    figures = {f"prefill_{job.prefill}": statistics.median(rates)}
    for depth in job.depths:
        engine.reset()
        engine.prefill(ids[:depth])
        times = []
        for token in ids[depth : depth + job.steps]:
            started = time.perf_counter()
            engine.step(token)
            times.append(time.perf_counter() - started)
        figures[f"decode_{depth}"] = 1 / statistics.median(times)
    return figures


def main() -> None:
    """Read a job, write its result."""
    job_file, result_file = map(Path, sys.argv[1:3])
    values = json.loads(job_file.read_text(encoding="utf-8"))
    job = Job(**{**values, "depths": tuple(values["depths"])})
    result_file.write_text(json.dumps(run(job)), encoding="utf-8")


if __name__ == "__main__":
    main()
