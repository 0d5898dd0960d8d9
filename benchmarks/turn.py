"""A turn of a conversation, timed: what `edgellm tune` compares ways to run a bundle by.

A turn is PROMPT tokens into an empty session and ANSWER greedy steps after them. Decoding stops early on slow machines, and the
steps that were made stand for all.

    turn = apart("smollm2", How("onnx", threads=2))      # in a fresh process, which is what a program that loads it is too
    turn.seconds, turn.prefill, turn.decode
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgellm._typed import build
from edgellm.benchmarks import fresh
from edgellm.benchmarks.fresh import Said
from edgellm.bundle import Bundle
from edgellm.errors import UsageError
from edgellm.runtimes import open_runtime
from edgellm.runtimes.session import Runtime
from edgellm.runtimes.tuned import How

PROMPT, ANSWER = 256, 128
ENOUGH = 4.0  # seconds of decoding after which the rest is known
LEAST = 8  # steps that are made whatever they take


@dataclass(frozen=True)
class Turn:
    """What a turn took, in seconds.

    Attributes:
        chunks: sizes in which a prompt can go in; `chunk` is the one that it did.
    """

    prefill: float
    decode: float
    chunks: tuple[int, ...]
    chunk: int

    @property
    def seconds(self) -> float:
        """Of the whole."""
        return self.prefill + self.decode


@dataclass(frozen=True)
class Job:
    """What the fresh process is told."""

    path: str
    how: How


def measure(path: str | os.PathLike[str], how: How) -> Turn:
    """Load a bundle exactly so, and time a turn, in this process.

    Raises:
        BundleError, RuntimeUnavailable, ResourceError: it cannot be loaded.
        UsageError: the model's context has no room for a turn.
    """
    bundle = Bundle.open(path)
    bundle.ensure_verified()
    room = bundle.spec.max_context
    prompt = min(PROMPT, room // 2)
    if prompt < 1:
        raise UsageError(f"a context of {room} tokens has no turn", where=path, fix="convert with a larger max_context")
    answer = min(ANSWER, room - prompt)
    ids = [int(token) for token in np.random.default_rng(0).integers(0, bundle.spec.vocab_size, prompt)]
    runtime = open_runtime(bundle, how=how, max_context=prompt + answer)
    try:
        _turn(runtime, ids[: runtime.chunk + 1], 1)  # what a runtime does at its first run only
        prefill, steps = _turn(runtime, ids, answer)
        return Turn(prefill, ANSWER * sum(steps) / len(steps), runtime.chunks, runtime.chunk)
    finally:
        runtime.close()


def _turn(runtime: Runtime, ids: list[int], most: int) -> tuple[float, list[float]]:
    """Seconds of the prompt, and of each step after it."""
    session = runtime.session()
    started = time.perf_counter()
    token = int(np.argmax(session.prefill(ids)))
    begun = time.perf_counter()
    prefill = begun - started
    steps: list[float] = []
    while len(steps) < min(LEAST, most) or (len(steps) < most and sum(steps) < ENOUGH):
        token = int(np.argmax(session.decode(token)))
        now = time.perf_counter()
        steps.append(now - begun)
        begun = now
    session.close()
    return prefill, steps


def apart(path: str | os.PathLike[str], how: How) -> Turn:
    """`measure`, in a process of its own: no measurement finds what another one left.

    Raises:
        EdgeError: as `measure`.
        InferenceError: the process died.
    """
    found: list[Turn] = []
    job = dataclasses.asdict(Job(os.fspath(path), how))
    fresh.run(__name__, job, lambda said: found.append(build(Turn, said)), where=path)
    return found[0]


def work(asked: object) -> Iterator[Said]:
    """What the fresh process does."""
    job = build(Job, asked)
    yield dataclasses.asdict(measure(job.path, job.how))
