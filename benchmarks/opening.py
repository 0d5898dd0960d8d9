"""Opening a lane's file in its engine: edgellm's own bundles, or a peer's files, which are imported only when asked for."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.benchmarks import own
from edgellm.benchmarks.cases import Engine, Mark, OwnLoop, Timed
from edgellm.benchmarks.result import Case, Lane
from edgellm.bundle import Bundle

Chain = Callable[[Case, Mark], Timed]


@dataclass(frozen=True)
class Opened:
    """A loaded lane.

    Attributes:
        context: tokens that it holds.
        chain: times the whole way of a text, given the ids of one; of our own bundles.
    """

    engine: Engine | OwnLoop
    context: int
    chain: Callable[[Sequence[int]], Chain | None] = lambda ids: None


def prepare(lane: Lane, path: Path) -> None:
    """What comes before any clock: hashing is done once a machine, telemetry is off before a library can start it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if lane.engine == own.ENGINE:
        Bundle.open(path).ensure_verified()


def import_code(lane: Lane) -> None:
    """Import what the lane's engine needs."""
    names = own.IMPORTS[lane.runtime] if lane.engine == own.ENGINE else _peer(lane).IMPORTS
    for name in names:
        with contextlib.suppress(ImportError):  # whoever opens it knows what to say of a package that is missing
            importlib.import_module(name)


def open_lane(lane: Lane, path: Path, context: int) -> Opened:
    """Load it with room for `context` tokens.

    Raises:
        EdgeError: it cannot be loaded.
    """
    if lane.engine != own.ENGINE:
        return Opened(_peer(lane).open_engine(path, variant=lane.variant, threads=lane.threads, context=context), context)
    bundle = Bundle.open(path)
    engine = own.open_engine(bundle, runtime=lane.runtime, threads=lane.threads, context=context)

    def chain(ids: Sequence[int]) -> Chain:
        def run(case: Case, mark: Mark) -> Timed:
            from edgellm.benchmarks.chain import Chain

            return Chain(bundle, engine.session, ids).run(case, mark)

        return run

    return Opened(engine, engine.session.max_context, chain)


def files(lane: Lane, path: Path) -> list[Path]:
    """Every file that a load may read."""
    if lane.engine == own.ENGINE:
        return own.files(Bundle.open(path))
    folder = path if path.is_dir() else path.parent  # what an engine packed of a file lies beside it
    return [file for file in folder.rglob("*") if file.is_file()]


def _peer(lane: Lane) -> Any:
    engine = importlib.import_module("edgellm.benchmarks.peers.engine")
    return engine.peer(lane.engine)
