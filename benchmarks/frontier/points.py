"""Files as points of quality and speed, and what lies on the frontier of a set of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from edgellm.benchmarks.figures import Figure
from edgellm.benchmarks.peers import table
from edgellm.benchmarks.peers.table import Index
from edgellm.benchmarks.result import Case, Lane, Quality

LEAST = 1e-9  # a KL has a logarithm


@dataclass(frozen=True)
class Point:
    """A file at one number of threads and one depth.

    Attributes:
        lane: its row in the run.
        quality: how close it is to the source.
        decode: tokens a second, by round.
    """

    lane: Lane
    quality: Quality
    decode: Figure

    @property
    def speed(self) -> float:
        """Tokens a second, the median over rounds."""
        return self.decode.median

    @property
    def kl(self) -> float:
        """KL(source || engine) in nats, above 0."""
        return max(self.quality.kl, LEAST)


def points(found: Index, lanes: Sequence[Lane], case: Case) -> list[Point]:
    """Every lane whose closeness and speed are both known, in their order."""
    speeds = [(lane, found.get((lane.id, case, "speed"))) for lane in lanes]
    return [Point(lane, lane.quality, decode) for lane, decode in speeds if lane.quality is not None and decode is not None]


def frontier(every: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both: from the closest and slowest to the fastest. Of equal ones the first."""
    best: list[Point] = []
    for point in sorted(every, key=lambda each: (each.kl, -each.speed)):
        if not best or point.speed > best[-1].speed:
            best.append(point)
    return best


def fastest_as_close(ours: Point, theirs: Sequence[Point]) -> Point | None:
    """The fastest of `theirs` whose KL is no worse than ours, a tie included; None if none is as close."""
    close = [each for each in theirs if table.no_worse(each.quality, ours.quality) != "no"]
    return max(close, key=lambda each: each.speed, default=None)


def decode_at(kl: float, line: Sequence[Point]) -> Figure | None:
    """Tokens a second on a frontier at a KL, round by round: between two points straight in the logarithms of both.

    Beyond its fastest point that point's own, because a file may always be closer; None where no point is as close, or where
    its two neighbours have no round in common.
    """
    if not line or kl < line[0].kl:
        return None
    for left, right in pairwise(line):
        if left.kl <= kl <= right.kl:
            part = math.log(kl / left.kl) / math.log(right.kl / left.kl)
            slow, fast = left.decode.by_round, right.decode.by_round
            by_round = {number: slow[number] ** (1 - part) * fast[number] ** part for number in slow if number in fast}
            return replace(left.decode, by_round=by_round) if by_round else None
    return line[-1].decode
