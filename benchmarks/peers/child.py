"""What one child process does: load one engine, and either time it or compare it with the source.

    python -m edgellm.benchmarks.peers.child job.json result.json

Nothing else runs in the process, so its peak RSS is the engine's (and Python's and numpy's). The result goes to a file,
because native libraries write to standard output as they like.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgellm.benchmarks.machine import peak_rss
from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers.engine import Engine, OwnLoop, Peer


@dataclass(frozen=True)
class Job:
    """What to do.

    Attributes:
        task: "speed", or "quality" with `reference` set.
        peer, variant, path: the engine and its file.
        ids: the text's ids; they are repeated as far as a case needs.
        prefill: tokens of the timed prefill.
        depths: contexts after which steps are timed.
        steps: steps timed after each.
        reference: .npy of the source's logits over `ids`.
    """

    task: Literal["speed", "quality"]
    peer: str
    variant: str
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
    """Do it: plain JSON values. The load is from files that have been read before to an engine that can run."""
    started = time.perf_counter()
    module = load_code(job.peer)
    imported = time.perf_counter()
    engine = module.open_engine(Path(job.path), variant=job.variant, threads=job.threads, context=job.context)
    loaded = time.perf_counter()
    try:
        if job.task == "quality":
            from edgellm.benchmarks.peers.quality import compare

            source = np.load(job.reference, mmap_mode="r")
            return dataclasses.asdict(compare(source, engine.logits(job.ids)))
        times = {"import_ms": (imported - started) * 1000, "load_ms": (loaded - imported) * 1000}
        return {**times, **_speed(engine, job), "rss": peak_rss()}
    finally:
        engine.close()


def load_code(peer: str) -> Peer:
    """A peer's module with everything imported that its engine needs; telemetry is off before a library can start it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    module = peers.peer(peer)
    for name in module.IMPORTS:
        importlib.import_module(name)
    return module


def _speed(engine: Engine, job: Job) -> dict[str, float]:
    ids = np.resize(np.asarray(job.ids), job.context).tolist()
    prompt = ids[: job.prefill]
    times = [_prefill(engine, prompt) for _ in range(3)][1:]  # the first one allocates
    figures = {f"prefill_{job.prefill}": statistics.median(len(prompt) / each for each in times)}
    for depth in job.depths:
        times = _steps(engine, ids[:depth], ids[depth : depth + job.steps])
        figures[f"decode_{depth}"] = 1 / statistics.median(times)
    return figures


def _prefill(engine: Engine, prompt: list[int]) -> float:
    if isinstance(engine, OwnLoop):
        return engine.time_prefill(prompt)
    engine.reset()
    started = time.perf_counter()
    engine.prefill(prompt)
    return time.perf_counter() - started


def _steps(engine: Engine, prompt: list[int], tokens: list[int]) -> list[float]:
    if isinstance(engine, OwnLoop):
        return engine.time_steps(prompt, len(tokens))
    engine.reset()
    engine.prefill(prompt)
    times = []
    for token in tokens:
        started = time.perf_counter()
        engine.step(token)
        times.append(time.perf_counter() - started)
    return times


def main() -> None:
    """Read a job, write its result."""
    job_file, result_file = map(Path, sys.argv[1:3])
    values = json.loads(job_file.read_text(encoding="utf-8"))
    job = Job(**{**values, "depths": tuple(values["depths"])})
    result_file.write_text(json.dumps(run(job)), encoding="utf-8")


if __name__ == "__main__":
    main()
