"""The measuring core: load a bundle, run prefill and decode several times, keep every figure.

    report = measure("smollm2-int4", Settings(trials=5))
    report.to_json()        # the machine, the versions and the settings are inside

Cases run over `edgellm.runtimes`' sessions, on token ids: tokenizing and sampling are not in the figures. Medians are
what one compares; lowest and highest show how far to trust them.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm._version import __version__
from edgellm.benchmarks.machine import Machine, machine, peak_rss
from edgellm.bundle import Bundle
from edgellm.errors import UsageError
from edgellm.runtimes import adapters, open_runtime
from edgellm.runtimes.session import Runtime

SCHEMA = 1
PACKAGES = ("numpy", "tokenizers")  # beside the runtime's own


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        prompts: prompt lengths in tokens; decode follows the first one.
        decode: tokens decoded after it.
        trials: times that each case is measured, after one run that is not.
        seed: of the prompt's random token ids. Speed does not depend on which ids they are.
    """

    prompts: tuple[int, ...] = (128, 512)
    decode: int = 64
    trials: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Series:
    """One measure over the trials, in `unit`."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Report:
    """A measured bundle. `notes` says what was left out and why."""

    bundle: str
    source: str
    recipe: str
    runtime: str
    threads: int
    settings: Settings
    machine: Machine
    versions: dict[str, str]
    series: tuple[Series, ...]
    peak_rss: int | None
    notes: tuple[str, ...] = ()

    @property
    def decode(self) -> Series:
        """The decode case."""
        return next(series for series in self.series if series.name.startswith("decode "))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, medians included."""
        value = dataclasses.asdict(self)
        value["series"] = [{**dataclasses.asdict(s), "median": s.median} for s in self.series]
        return {"schema": SCHEMA, **value}


def measure(
    path: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda case: None,
) -> Report:
    """Measure a bundle in this process; `edgellm.benchmarks.apart` does it in a fresh one, for a true peak RSS.

    Args:
        path: the bundle's folder.
        runtime, threads: as for `edgellm.load`.
        progress: is told the name of each case before it runs.

    Raises:
        BundleError, RuntimeUnavailable, ResourceError: the bundle cannot be loaded.
        UsageError: the model's context is too short for every case.
    """
    settings = settings or Settings()
    bundle = Bundle.open(path)
    bundle.ensure_verified()  # hashing is done once a machine, not once a load
    room = bundle.spec.max_context
    prompts = tuple(length for length in settings.prompts if length + 1 <= room)
    if not prompts or settings.trials < 1:
        raise UsageError(f"no case fits a context of {room} tokens", where=path, fix="ask for shorter prompts")
    steps = min(settings.decode, room - prompts[0])
    notes = [f"prompt of {n} left out: the context is {room} tokens" for n in settings.prompts if n not in prompts]
    need = max(prompts[0] + steps, *prompts)

    progress("load")
    started = time.perf_counter()
    loaded = open_runtime(bundle, name=runtime, threads=threads, max_context=need)
    load_ms = (time.perf_counter() - started) * 1000
    try:
        series = [Series("load", "ms", (load_ms,))]
        for length in prompts:
            progress(f"prefill {length}")
            series.append(_prefill(loaded, _ids(bundle, length, settings.seed), settings.trials))
        series.append(Series("time to first token", "ms", tuple(prompts[0] / rate * 1000 for rate in series[1].values)))
        progress(f"decode {steps}")
        series.append(_decode(loaded, _ids(bundle, prompts[0], settings.seed), steps, settings.trials))
        return Report(
            bundle=bundle.path.resolve().name,
            source=bundle.provenance.source,
            recipe=bundle.recipe_of(bundle.graphs[loaded.name]).name,
            runtime=loaded.name,
            threads=loaded.threads,
            settings=settings,
            machine=machine(),
            versions=_versions(loaded.name),
            series=tuple(series),
            peak_rss=peak_rss(),
            notes=tuple(notes),
        )
    finally:
        loaded.close()


def _prefill(runtime: Runtime, ids: Sequence[int], trials: int) -> Series:
    """Tokens per second from an empty cache to the last token's logits."""
    rates = []
    for trial in range(trials + 1):
        session = runtime.session()
        started = time.perf_counter()
        session.prefill(ids)
        elapsed = time.perf_counter() - started
        session.close()
        if trial:
            rates.append(len(ids) / elapsed)
    return Series(f"prefill {len(ids)}", "tok/s", tuple(rates))


def _decode(runtime: Runtime, ids: Sequence[int], steps: int, trials: int) -> Series:
    """Tokens per second of greedy steps, one at a time, after the prompt."""
    session = runtime.session()
    rates = []
    for trial in range(trials + 1):
        session.rewind(0)
        token = int(np.argmax(session.prefill(ids)))
        started = time.perf_counter()
        for _ in range(steps):
            token = int(np.argmax(session.decode(token)))
        elapsed = time.perf_counter() - started
        if trial:
            rates.append(steps / elapsed)
    session.close()
    return Series(f"decode {steps} after {len(ids)}", "tok/s", tuple(rates))


def _ids(bundle: Bundle, length: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, bundle.spec.vocab_size, length)]


def _versions(runtime: str) -> dict[str, str]:
    adapter = adapters.find(runtime)
    own = {} if adapter is None else {adapter.PACKAGE: adapters.version(adapter) or "unknown"}
    return {"edgellm": __version__, **own, **{package: importlib.metadata.version(package) for package in PACKAGES}}
