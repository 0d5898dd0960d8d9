"""The comparison: every engine's file of every model as lanes of one run, judged on one text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.benchmarks import run as bench
from edgellm.benchmarks.cases import plan
from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers import quality
from edgellm.benchmarks.peers.engine import EngineId
from edgellm.benchmarks.peers.lanes import describe, folder_of
from edgellm.benchmarks.result import Run, Settings
from edgellm.benchmarks.run import Entry
from edgellm.errors import EdgeError

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


def measure(
    models: Sequence[Model],
    prepared: Sequence[Prepared],
    left_out: Sequence[str],
    settings: Settings,
    command: str,
    progress: Callable[[str], None],
) -> Run:
    """Run everything: every sample, and how close each file is to its source."""
    by_name = {model.name: model for model in models}
    room = max([*settings.prompts, *(depth + settings.decode for depth in settings.depths)]) + 1
    cases, _ = plan(settings, room, chat=False, cold=False)
    entries: list[Entry] = []
    for each in prepared:
        model = by_name[each.model]
        lanes = describe(each.engine, each.path, model.name, model.source, settings.threads)
        most, ids = max(room, len(model.ids)), tuple(model.ids)
        entries += [Entry(lane, each.path, most, cases, ids, model.reference) for lane in lanes]
    return bench.go(entries, settings, command=command, progress=progress, notes=left_out)
