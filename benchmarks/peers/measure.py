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
from typing import Any

from edgellm._version import __version__
from edgellm.benchmarks import stored
from edgellm.benchmarks.machine import machine
from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers import quality, quiet
from edgellm.benchmarks.peers.child import Job
from edgellm.benchmarks.peers.engine import EngineId
from edgellm.benchmarks.stored import Stored
from edgellm.bundle import cache_dir, sha256_file
from edgellm.errors import EdgeError, RuntimeUnavailable, UsageError

SCHEMA = 3  # 2 did not count bits; 1 had less about a row, and the imports within the load
CHILD_SECONDS = 1800.0


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        threads: thread counts, each a table of its own.
        trials: rounds; every engine runs once in each.
        prefill: tokens of the timed prefill.
        depths: contexts after which decode steps are timed.
        steps: steps timed after each.
        positions: tokens of the text over which closeness to the source is judged.
        seed: of the order within rounds.
    """

    threads: tuple[int, ...] = (1, 2)
    trials: int = 5
    prefill: int = 512
    depths: tuple[int, ...] = (32, 1024)
    steps: int = 64
    positions: int = 600
    seed: int = 0


@dataclass(frozen=True)
class Prepared:
    """One engine's file of one model."""

    model: str
    engine: EngineId
    path: Path
    size: int
    stored: Stored | None


@dataclass(frozen=True)
class Model:
    """A source, its ids of the text, and the source's own logits over them."""

    name: str
    source: Path
    folder: Path
    ids: list[int]
    reference: Path


def folder_of(source: Path) -> Path:
    """Where the peers' files of this source are kept: another content, another folder."""
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    if not files or not all(file.is_file() for file in files):
        raise UsageError("no model there", where=source, fix="give a GGUF file or a folder of safetensors")
    digest = "".join(sha256_file(file)[:12] for file in files)[:48]
    return cache_dir() / "peers" / f"{source.stem}-{digest}"


def open_model(name: str, source: Path, positions: int) -> Model:
    """Tokenize the text and run the source over it (once; kept in the cache)."""
    folder = folder_of(source)
    ids = quality.text_ids(source)[:positions]
    return Model(name, source, folder, ids, quality.reference(source, ids, folder))


def prepare(
    model: Model, engines: Sequence[EngineId], progress: Callable[[str], None]
) -> tuple[list[Prepared], list[dict[str, str]]]:
    """The engines' files, and what is left out with the reason."""
    made, left_out = [], []
    for engine in engines:
        progress(f"{model.name}: prepare {engine}")
        module = peers.peer(engine.peer)
        try:
            peers.versions(module)
            path = module.prepare(engine.variant, model.source, model.folder)
        except EdgeError as error:
            left_out.append({"model": model.name, "engine": str(engine), "reason": str(error)})
            continue
        size = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
        made.append(Prepared(model.name, engine, path, size, _stored(path)))
    return made, left_out


def _stored(path: Path) -> Stored | None:
    try:
        return stored.linears(path)
    except RuntimeUnavailable:  # what reads the file is not needed to run it
        return None


def measure(
    models: Sequence[Model],
    prepared: Sequence[Prepared],
    left_out: Sequence[dict[str, str]],
    settings: Settings,
    seen: quiet.Quiet,
    command: str,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Run everything: the report, plain JSON values with every sample in it."""
    started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    by_name = {model.name: model for model in models}
    judged = []
    for each in prepared:
        progress(f"{each.model}: closeness of {each.engine}")
        model = by_name[each.model]
        job = Job(
            "quality",
            each.engine.peer,
            each.engine.variant,
            str(each.path),
            max(settings.threads),
            model.ids,
            reference=str(model.reference),
        )
        judged.append({"model": each.model, "engine": str(each.engine), **run_child(job)})
    samples = []
    order = random.Random(settings.seed)
    for number in range(settings.trials):
        for threads in settings.threads:
            for model in models:
                queue = [each for each in prepared if each.model == model.name]
                order.shuffle(queue)
                for each in queue:
                    progress(f"round {number + 1} of {settings.trials}: {each.model} {each.engine}, {threads} threads")
                    job = Job(
                        "speed",
                        each.engine.peer,
                        each.engine.variant,
                        str(each.path),
                        threads,
                        model.ids,
                        settings.prefill,
                        settings.depths,
                        settings.steps,
                    )
                    key = {"round": number, "model": each.model, "engine": str(each.engine), "threads": threads}
                    samples.append({**key, **run_child(job)})
    versions = {"edgellm": __version__}
    for name in {each.engine.peer for each in prepared}:
        versions |= peers.versions(peers.peer(name))
    return {
        "schema": SCHEMA,
        "kind": "peers",
        "command": command,
        "started": started,
        "machine": dataclasses.asdict(machine()),
        "quiet": {**dataclasses.asdict(seen), "reasons": list(seen.reasons)},
        "versions": dict(sorted(versions.items())),
        "settings": dataclasses.asdict(settings),
        "models": [{"name": m.name, "source": m.source.name, "folder": m.folder.name, "ids": m.ids} for m in models],
        "engines": [
            {
                "model": each.model,
                "engine": str(each.engine),
                **dataclasses.asdict(peers.peer(each.engine.peer).VARIANTS[each.engine.variant]),
                "size": each.size,
                "stored": None if each.stored is None else dataclasses.asdict(each.stored),
            }
            for each in prepared
        ],
        "left_out": list(left_out),
        "quality": judged,
        "samples": samples,
    }


def run_child(job: Job) -> dict[str, Any]:
    """A job in a fresh process: its figures, and `others`: processors that other processes kept busy meanwhile.

    A child that fails gives {"error": ...}: the table says so, and the run goes on.
    """
    with tempfile.TemporaryDirectory(prefix="edgellm-peers-") as scratch:
        job_file, result = Path(scratch) / "job.json", Path(scratch) / "result.json"
        job_file.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
        command = [sys.executable, "-m", "edgellm.benchmarks.peers.child", str(job_file), str(result)]
        before, own, started = quiet.busy_seconds(), _children_seconds(), time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=CHILD_SECONDS)
        except subprocess.TimeoutExpired:
            return {"error": f"nothing after {CHILD_SECONDS:.0f} s"}
        after, wall = quiet.busy_seconds(), time.perf_counter() - started
        if done.returncode != 0 or not result.is_file():
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            return {"error": last}
        figures: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if before is not None and after is not None:
        figures["others"] = max(0.0, (after - before - (_children_seconds() - own)) / wall)
    return figures


def _children_seconds() -> float:
    """CPU seconds of the child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system
