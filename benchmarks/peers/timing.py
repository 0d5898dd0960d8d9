"""One case of one engine, timed: for a process in which nothing else runs.

    engine, load = load_engine(lane, path, context)
    sample = time_case(engine, Case("decode", depth=1024, steps=64), ids)

A sample says neither its lane nor its round, nor what others did meanwhile: who runs the process knows that, and fills it in.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgellm.benchmarks.machine import peak_rss
from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers.engine import Engine, OwnLoop, Peer
from edgellm.benchmarks.result import Case, Lane, Sample
from edgellm.errors import UsageError

LOAD = Case("load")


def load_engine(lane: Lane, path: Path, context: int) -> tuple[Engine | OwnLoop, Sample]:
    """Load a lane's file with room for `context` tokens.

    Its packages are imported before, and timed apart. The files have been read before, so that the load is a warm one.

    Raises:
        EdgeError: the engine does not load it.
    """
    started = time.perf_counter()
    module = load_code(peers.module_of(lane_peer(lane)))
    imported, spent = time.perf_counter(), time.process_time()
    engine = module.open_engine(path, variant=lane.variant, threads=lane.threads, context=context)
    loaded = time.perf_counter()
    sample = _sample(LOAD, loaded - imported, cpu=time.process_time() - spent, importing=imported - started)
    return engine, sample


def lane_peer(lane: Lane) -> str:
    """The name of the peer that runs a lane."""
    return f"{lane.engine}-{lane.runtime}" if lane.runtime else lane.engine


def load_code(peer: str) -> Peer:
    """A peer's module with everything imported that its engine needs; telemetry is off before a library can start it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    module = peers.peer(peer)
    for name in module.IMPORTS:
        importlib.import_module(name)
    return module


def time_case(engine: Engine | OwnLoop, case: Case, ids: Sequence[int]) -> Sample:
    """Time a prefill, a first token or a decode with everything warm; the ids are repeated as far as the case needs.

    A decode is given the text's tokens, not those that it would choose; an engine with a loop of its own chooses them.

    Raises:
        UsageError: a case of another kind.
    """
    text = np.resize(np.asarray(ids), case.prompt + case.depth + case.steps).tolist()
    if case.state == "warm" and case.kind in ("prefill", "first token"):
        return _prefill(engine, case, text[: case.prompt])
    if case.state == "warm" and case.kind == "decode":
        return _decode(engine, case, text[: case.depth], text[case.depth :])
    raise UsageError(f"'{case.name}' is not measured of a peer", fix="leave the peers out")


def _prefill(engine: Engine | OwnLoop, case: Case, prompt: list[int]) -> Sample:
    if isinstance(engine, OwnLoop):
        spent = time.process_time()
        seconds = engine.time_prefill(prompt)
        return _sample(case, seconds, cpu=time.process_time() - spent)
    engine.reset()
    spent, started = time.process_time(), time.perf_counter()
    engine.prefill(prompt)
    return _sample(case, time.perf_counter() - started, cpu=time.process_time() - spent)


def _decode(engine: Engine | OwnLoop, case: Case, prompt: list[int], tokens: list[int]) -> Sample:
    if isinstance(engine, OwnLoop):
        seconds, steps = engine.time_steps(prompt, len(tokens))
        return _sample(case, seconds, steps)  # its CPU time has the prompt's in it
    engine.reset()
    engine.prefill(prompt)
    spent = time.process_time()
    times = []
    for token in tokens:
        started = time.perf_counter()
        engine.step(token)
        times.append(time.perf_counter() - started)
    return _sample(case, sum(times), times, cpu=time.process_time() - spent)


def _sample(
    case: Case, seconds: float, steps: Sequence[float] = (), *, cpu: float | None = None, importing: float | None = None
) -> Sample:
    parts = {} if importing is None else {"import": importing}
    return Sample("", case, 0, 0.0, seconds, tuple(steps), parts, cpu=cpu, rss=peak_rss())
