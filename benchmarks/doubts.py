"""What speaks against a run: which lanes have no result, and which figures are not to be quoted.

A lane fails whose steps are wrong, or which claims more than the machine can do: then the clock, the count of bytes or the
probe is wrong, and nobody knows which. Everything else is said beside the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgellm.benchmarks import conditions, figures
from edgellm.benchmarks.figures import Figure
from edgellm.benchmarks.limit import last_level_bytes
from edgellm.benchmarks.result import Lane, Run
from edgellm.runtimes.threads import allowed_cpus

AGREEMENT = 0.9  # steps that one pass confirms: rounding may turn a close one, a broken cache turns most
SHARES = {"bandwidth share": "memory bandwidth", "int8 share": "peak of 8-bit products"}


def judged(run: Run) -> Run:
    """The run with its own doubts and those of its lanes."""
    every = figures.figures(run)
    lanes = tuple(_judged(lane, run, [each for each in every if each.lane == lane.id]) for lane in run.lanes)
    return replace(run, lanes=lanes, doubts=conditions.doubts(run.moments, run.samples, run.machine))


def _judged(lane: Lane, run: Run, found: Sequence[Figure]) -> Lane:
    if lane.failed is not None:
        return lane
    failed = _wrong(lane) or _impossible(lane, found)
    return replace(lane, failed=failed, doubts=(*lane.doubts, *_doubts(lane, run, found)))


def _wrong(lane: Lane) -> str | None:
    if lane.agreement is None or lane.agreement >= AGREEMENT:
        return None
    return f"its output is wrong: one pass over the text confirms {lane.agreement:.0%} of its steps"


def _impossible(lane: Lane, found: Sequence[Figure]) -> str | None:
    """More than the limit. What the processor's cache keeps from step to step need not come from memory."""
    cached = last_level_bytes(allowed_cpus())
    kept = 0.0 if not lane.weight_bytes else min(1.0, cached / lane.weight_bytes)
    for each in found:
        share = each.median * ((1 - kept) if each.measure == "bandwidth share" else 1.0)
        if each.measure in SHARES and share > 1:
            name = SHARES[each.measure]
            return f"{each.case.name} takes {each.median:.0%} of the {name}: more than there is, so some figure is wrong"
    return None


def _doubts(lane: Lane, run: Run, figures: Sequence[Figure]) -> list[str]:
    found = []
    busy = conditions.disturbed([each for each in run.samples if each.lane == lane.id and each.round])
    if busy is not None:
        found.append(busy)
    if any(each.measure == "bandwidth share" and each.median > 1 for each in figures):
        found.append("it reads more than memory gives: a part of its weights stays in the processor's cache")
    if _changes(lane, run):
        found.append("its tokens were not the same in every round")
    if lane.fidelity is not None and lane.fidelity.verdict == "degraded":
        found.append("its fidelity card says degraded")
    return found


def _changes(lane: Lane, run: Run) -> bool:
    told: dict[object, tuple[int, ...]] = {}
    mine = [each for each in run.samples if each.lane == lane.id and each.tokens]
    return any(told.setdefault(each.case, each.tokens) != each.tokens for each in mine)
