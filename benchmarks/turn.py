"""A turn of a conversation, timed: what `edgellm tune` compares ways to run a bundle by.

A turn is PROMPT tokens into an empty session and ANSWER greedy steps after them. Decoding stops early on slow machines, and the
steps that were made stand for all.

    turn = apart("smollm2", How("onnx", threads=2))      # in a fresh process, which is what a program that loads it is too
    turn.seconds, turn.prefill, turn.decode
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm import errors
from edgellm._typed import build
from edgellm.bundle import Bundle
from edgellm.errors import EdgeError, InferenceError, UsageError
from edgellm.runtimes import open_runtime
from edgellm.runtimes.session import Runtime
from edgellm.runtimes.tuned import How

PROMPT, ANSWER = 256, 128
ENOUGH = 4.0  # seconds of decoding after which the rest is known
LEAST = 8  # steps that are made whatever they take
CHILD = "import sys; from edgellm.benchmarks.turn import child; child(sys.argv[1])"


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
    context = min(PROMPT + ANSWER, bundle.spec.max_context)
    prompt = min(PROMPT, context // 2)
    if prompt < 1:
        raise UsageError(f"a context of {context} tokens has no turn", where=path, fix="convert with a larger max_context")
    ids = [int(token) for token in np.random.default_rng(0).integers(0, bundle.spec.vocab_size, prompt)]
    runtime = open_runtime(bundle, how=how, max_context=context)
    try:
        _turn(runtime, ids[: runtime.chunk + 1], 1)  # what a runtime does at its first run only
        prefill, steps = _turn(runtime, ids, context - prompt)
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
    job = json.dumps(dataclasses.asdict(Job(os.fspath(path), how)))
    stderr = subprocess.DEVNULL if sys.stderr is None else None
    # -P: no module from the folder where the user stands, which may be a bundle that somebody else made
    done = subprocess.run(
        [sys.executable, "-P", "-c", CHILD, job],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        what = f"the process that measured it ended with status {done.returncode}"
        raise InferenceError(what, where=path, fix="free memory and try again")
    said = json.loads(done.stdout)
    if "error" in said:
        raise getattr(errors, said["error"])(said["what"], where=said["where"], fix=said["fix"])
    return build(Turn, said)


def child(asked: str) -> None:
    """What the fresh process does: its standard output is for the answer, so native libraries get none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the parent too, which ends this process
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open("wb") as sink:
        os.dup2(sink.fileno(), 1)
    job = build(Job, json.loads(asked))
    try:
        said = dataclasses.asdict(measure(job.path, job.how))
    except EdgeError as error:
        said = {"error": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
    print(json.dumps(said), file=ours, flush=True)
