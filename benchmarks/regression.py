"""Two runs of the same benchmark: which differences are real, and which of them are regressions.

    outcome = compare(read("old.json"), read("new.json"))
    outcome.regressions

Rounds are pairs within one run, where lanes take turns. Between two runs they are none: round 3 of the one has nothing in
common with round 3 of the other. So `spread.unpaired` compares them, all measures at once: over the whole comparison a
difference is claimed that is none at most `alpha` of the time.

That holds for what differs from round to round. What differs from run to run (the machine was another one that day) no
statistic of two runs can tell from a change of the program. Three things are done about it: a difference, to either side, has
to be more than `least` with its whole interval; the machine's own limits, probed in both runs, are compared in the same way,
and where they differ there is no answer; nor is there one on another machine, with doubts in a file, or where the new run lacks
what the old one has. Nothing is scaled by the probes: how far a case follows the memory's speed would be a guess.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgellm.benchmarks.figures import Figure, figures
from edgellm.benchmarks.result import Case, Lane, Run
from edgellm.benchmarks.spread import ALPHA, Ratio, unpaired
from edgellm.errors import UsageError

LEAST = 0.03
# One measure for each thing that a user notices. The others say the same again (p50, pss, the parts of a chain), or are shares
# of these, or are neither good nor bad (cpu), and each of them would make the rest harder to tell from chance.
JUDGED = ("time", "speed", "p95", "rss", "energy")
SLOW_DOWN = 0.3  # what a gate has to see; where most intervals are too wide for that, "no difference" says nothing

Key = tuple[str, str, str, str, int, str]


@dataclass(frozen=True)
class Comparison:
    """One measure in both runs.

    Attributes:
        lane: id in the new run.
        case: what was timed, by its name in tables.
        old, new: medians, in `unit`.
        ratio: new / old, of geometric means.
        regression, improvement: worse or better by more than the least effect, with the whole interval.
        blind: the interval holds a slow-down of 30 % as well as none.
    """

    lane: str
    case: str
    measure: str
    unit: str
    higher: bool
    old: float
    new: float
    ratio: Ratio
    regression: bool
    improvement: bool
    blind: bool


@dataclass(frozen=True)
class Outcome:
    """All comparisons.

    Attributes:
        against: why these files give no answer; empty if they do.
        remarks: what else differs.
        alpha: how often, at most, a difference is claimed in one of the rows and there is none.
        least: what a difference has to be more than, as a share.
    """

    rows: tuple[Comparison, ...]
    against: tuple[str, ...]
    remarks: tuple[str, ...]
    alpha: float
    least: float

    @property
    def regressions(self) -> tuple[Comparison, ...]:
        """The rows that are."""
        return tuple(row for row in self.rows if row.regression)

    @property
    def blind(self) -> int:
        """Rows in which a slow-down of 30 % would not have been seen."""
        return sum(row.blind for row in self.rows)


def compare(old: Run, new: Run, *, least: float = LEAST, alpha: float = ALPHA) -> Outcome:
    """Compare the lanes that both runs have: same engine, model, variant, runtime, threads and device.

    Args:
        least: a difference is one of more than this share, such as .03.
        alpha: of all rows together.

    Raises:
        UsageError: they have no lane and case in common.
    """
    lanes = _lanes(old, new)
    before, after = _judged(old, {lane.id: other.id for lane, other in lanes}), _judged(new)
    if old.energy != new.energy:
        before = {key: figure for key, figure in before.items() if figure.measure != "energy"}
    both = [key for key in after if key in before]
    if not both and all(lane.failed is None for pair in lanes for lane in pair):
        raise UsageError("these runs have nothing in common", fix="compare runs of the same bundle, cases and threads")
    pairs = [(before[key], after[key]) for key in both]
    ratios = unpaired(pairs, new.settings.seed, alpha)
    rows = tuple(_row(*pair, ratio, least) for pair, ratio in zip(pairs, ratios, strict=True))
    missing = [figure for key, figure in before.items() if key not in after]
    against = [*_other_machine(old, new), *_doubts(old, new, lanes), *_lost(old, new, lanes, missing)]
    if not rows:
        against.append("the two have no figure in common")
    elif all(row.ratio.verdict is None for row in rows):
        counts = " and ".join(str(max(len(pair[side].by_round) for pair in pairs)) for side in (0, 1))
        against.append(f"{counts} rounds are too few for any verdict at alpha {alpha:g}: 5 each suffice for .01, 8 see more")
    against += _drift(old, new, least, alpha)
    remarks = list(_remarks(old, new, lanes))
    few = dict.fromkeys(row.case for row in rows if row.ratio.verdict is None)
    if few:
        remarks.append(f"too few rounds for a verdict: {', '.join(few)}")
    return Outcome(rows, tuple(against), tuple(remarks), alpha, least)


def _row(old: Figure, new: Figure, ratio: Ratio, least: float) -> Comparison:
    """Worse is down where more is better, and up elsewhere."""
    regression = improvement = blind = False
    if ratio.low is not None and ratio.high is not None:
        mildest, worst = (1 / ratio.high, 1 / ratio.low) if new.higher else (ratio.low, ratio.high)
        regression, improvement = mildest > 1 + least, worst < 1 / (1 + least)
        blind = not regression and worst > 1 + SLOW_DOWN
    name, values = new.case.name, (old.median, new.median)
    return Comparison(new.lane, name, new.measure, new.unit, new.higher, *values, ratio, regression, improvement, blind)


def _judged(run: Run, ids: dict[str, str] | None = None) -> dict[tuple[str, Case, str], Figure]:
    """The figures that count, by lane (under the id that `ids` gives it, where it is given), case and measure.

    Windows of a sustained run are no rounds: each begins where the one before has left the machine.
    """
    found = {}
    for figure in figures(run):
        lane = figure.lane if ids is None else ids.get(figure.lane)
        if figure.measure in JUDGED and figure.case.kind != "sustained" and lane is not None:
            found[lane, figure.case, figure.measure] = figure
    return found


def _lanes(old: Run, new: Run) -> list[tuple[Lane, Lane]]:
    """Those that are the same in both; where several in a run are alike, by id as well."""
    keys = [Counter(_key(lane) for lane in run.lanes) for run in (old, new)]

    def exact(lane: Lane) -> tuple[Key, str]:
        alike = any(count[_key(lane)] > 1 for count in keys)
        return _key(lane), lane.id if alike else ""

    there = {exact(lane): lane for lane in new.lanes}
    return [(lane, there[exact(lane)]) for lane in old.lanes if exact(lane) in there]


def _key(lane: Lane) -> Key:
    return lane.engine, lane.model, lane.variant, lane.runtime, lane.threads, lane.device


def _other_machine(old: Run, new: Run) -> Iterator[str]:
    for name in ("cpu", "architecture", "features", "cores", "memory", "model"):
        before, after = getattr(old.machine, name), getattr(new.machine, name)
        if before != after:
            yield f"another machine: {name} was {_said(before)} and is {_said(after)}"
    if old.machine.cpu.startswith("unknown") and old.host != new.host:  # nothing but its name tells a browser's device
        yield f"another machine: it was called '{old.host}' and is called '{new.host}'"
    if old.settings.sustained != new.settings.sustained:
        yield f"sustained for {old.settings.sustained:g} s and for {new.settings.sustained:g} s"


def _doubts(old: Run, new: Run, lanes: Sequence[tuple[Lane, Lane]]) -> Iterator[str]:
    for name, run, side in (("old", old, 0), ("new", new, 1)):
        yield from (f"{name} run: {doubt}" for doubt in run.doubts)
        for pair in lanes:
            both = {*pair[0].doubts} & {*pair[1].doubts}  # what both were measured with is no difference between them
            yield from (f"{name} run, {pair[side].id}: {doubt}" for doubt in pair[side].doubts if doubt not in both)


def _lost(old: Run, new: Run, lanes: Sequence[tuple[Lane, Lane]], missing: Sequence[Figure]) -> Iterator[str]:
    """What was measured before and is not now: a gate that skips it would be green because something broke."""
    kept = {lane.id: other for lane, other in lanes}
    for lane in old.lanes:
        if lane.id not in kept:
            if lane.failed is None:
                yield f"the new run has no lane {lane.id}"
            continue
        if kept[lane.id].failed is not None:
            yield f"the new run has no result of {lane.id}: {kept[lane.id].failed}"
            continue
        names = dict.fromkeys(f"{figure.case.name} ({figure.measure})" for figure in missing if figure.lane == lane.id)
        if names:
            yield f"the new run lacks, of {lane.id}: {', '.join(names)}"


def _drift(old: Run, new: Run, least: float, alpha: float) -> Iterator[str]:
    """Where the machine's own limits differ by more than a regression has to."""
    before, after = _probed(old), _probed(new)
    pairs = [(before[key], after[key]) for key in before if key in after]
    if not pairs:
        return
    for (_, figure), ratio in zip(pairs, unpaired(pairs, new.settings.seed, alpha), strict=True):
        if ratio.low is not None and ratio.high is not None and (ratio.low > 1 + least or ratio.high < 1 / (1 + least)):
            change = f"{ratio.value:.2f} times what it was ({ratio.low:.2f} to {ratio.high:.2f})"
            yield f"the machine itself differs: {figure.measure} of {figure.lane} is {change}"


def _probed(run: Run) -> dict[tuple[str, int], Figure]:
    """Its limits in the form of figures, the warm-up's included: a probe warms itself up."""
    found: dict[tuple[str, int], dict[int, list[float]]] = {}
    for probe in run.probes:
        if probe.value > 0:
            found.setdefault((probe.what, probe.threads), {}).setdefault(probe.round, []).append(probe.value)
    return {
        (what, threads): Figure(
            lane=f"{threads} thread{'' if threads == 1 else 's'}",
            case=Case("load"),
            measure=what,
            unit="",
            higher=True,
            by_round={number: statistics.median(values) for number, values in rounds.items()},
        )
        for (what, threads), rounds in found.items()
    }


def _remarks(old: Run, new: Run, lanes: Sequence[tuple[Lane, Lane]]) -> Iterator[str]:
    for name, run in (("old", old), ("new", new)):
        if not run.complete:
            yield f"the {name} run was interrupted; its finished rounds count"
    for name in ("system", "python"):
        before, after = getattr(old.machine, name), getattr(new.machine, name)
        if before != after:
            yield f"{name}: {before}, now {after}"
    if old.version != new.version:
        yield f"edgellm {old.version}, now {new.version}"
    if old.energy != new.energy:
        yield f"energy is not compared: its counter was {_said(old.energy)} and is {_said(new.energy)}"
    mine, theirs = dataclasses.asdict(old.settings), dataclasses.asdict(new.settings)
    changed = [name for name in mine if name != "seed" and mine[name] != theirs[name]]
    if changed:
        yield f"settings differ: {', '.join(changed)}"
    for before, after in lanes:
        packages = [name for name in before.versions if after.versions.get(name) != before.versions[name]]
        changes = [f"{name} {before.versions[name]}, now {after.versions.get(name, 'none')}" for name in packages]
        if before.digest != after.digest:
            changes.append(f"other files ({before.size / 1e6:,.1f} MB, now {after.size / 1e6:,.1f} MB)")
        if before.quality is not None and after.quality is not None and before.quality.kl != after.quality.kl:
            changes.append(f"KL {before.quality.kl:.4f}, now {after.quality.kl:.4f}")
        if changes:
            yield f"{after.id}: {'; '.join(changes)}"
    for before, after in lanes:
        yield from (f"both runs, {after.id}: {doubt}" for doubt in before.doubts if doubt in after.doubts)
    paired = {after.id for _, after in lanes}
    added = [lane.id for lane in new.lanes if lane.id not in paired]
    if added:
        yield f"only in the new run: {', '.join(added)}"


def _said(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
