"""A report's contents, in order. A section whose data is in none of the runs is left out."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.benchmarks.report import appendix, headline, resources, speed
from edgellm.benchmarks.report.document import Document, clean
from edgellm.benchmarks.report.texts import joined, many
from edgellm.benchmarks.report.view import view
from edgellm.benchmarks.result import Run


def document(runs: Sequence[Run]) -> Document:
    """Of one run, or of several, which are devices side by side."""
    seen = view(runs)
    sections = (
        headline.headline(seen),
        headline.devices(seen),
        headline.ratios(seen),
        resources.limit(seen),
        speed.decode(seen),
        speed.prefill(seen),
        speed.first_token(seen),
        speed.latency(seen),
        speed.sustained(seen),
        resources.quality(seen),
        resources.memory(seen),
        resources.chain(seen),
        resources.processors(seen),
        resources.energy(seen),
        speed.warm_up(seen),
        resources.conditions(seen),
        appendix.definitions(),
        appendix.setting(seen),
        appendix.lanes(seen),
    )
    lanes = [entry.lane for entry in seen.all]
    about = [*seen.machines, *_shared("made of", [lane.source for lane in lanes])]
    about.append(f"{many(len(lanes), 'lane')}, {joined(clean(run.started)[:16].replace('T', ' ') for run in runs)}")
    return Document(
        title=joined((clean(lane.model) for lane in lanes), 3) or "no lanes",
        about=tuple(about),
        doubts=tuple(headline.doubts(seen)),
        sections=tuple(section for section in sections if section is not None),
    )


def _shared(what: str, names: Sequence[str]) -> list[str]:
    """What all lanes have in common; nothing where they differ."""
    one = set(names)
    return [f"{what} {clean(one.pop())}"] if len(one) == 1 and "" not in one else []
