"""What speaks against a run: which lanes have no result, and which figures are not to be quoted.

A lane fails whose steps are wrong, or which claims more than the machine can do: then the clock, the count of bytes or the
probe is wrong, and nobody knows which. Everything else is said beside the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgellm.benchmarks import conditions, emulation, figures
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
    """More than the limit. Weights that the processor's cache holds as a whole need not come from memory."""
    for each in found:
        if each.measure == "bandwidth share" and _is_cached(lane):
            continue
        if each.measure in SHARES and each.median > 1:
            name = SHARES[each.measure]
            return f"{each.case.name} takes {each.median:.0%} of the {name}: more than there is, so some figure is wrong"
    return None


def _is_cached(lane: Lane) -> bool:
    return (lane.weight_bytes or 0) <= last_level_bytes(allowed_cpus())


def _doubts(lane: Lane, run: Run, figures: Sequence[Figure]) -> list[str]:
    found = []
    busy = conditions.disturbed([each for each in run.samples if each.lane == lane.id and each.round])
    if busy is not None:
        found.append(busy)
    substitute = emulation.software(lane.device)
    if substitute is not None:
        found.append(f"{substitute}: it says what the lane says, and nothing of how fast a GPU is")
    if any(each.measure == "bandwidth share" and each.median > 1 for each in figures):
        found.append("it reads more than memory gives: its weights stay in the processor's cache")
    if lane.agreement is None:
        found.append("its output was not checked: it shows no logits")
    if _changes(lane, run):
        found.append("its tokens were not the same in every round")
    if lane.fidelity is not None and lane.fidelity.verdict == "degraded":
        found.append("its fidelity card says degraded")
    return found


def _changes(lane: Lane, run: Run) -> bool:
    told: dict[object, tuple[int, ...]] = {}
    mine = [each for each in run.samples if each.lane == lane.id and each.tokens]
    return any(told.setdefault(each.case, each.tokens) != each.tokens for each in mine)
