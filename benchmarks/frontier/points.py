"""Files as points of quality and speed, and what lies on the frontier of a set of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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
        speed: tokens a second, the median over rounds.
    """

    lane: Lane
    quality: Quality
    speed: float

    @property
    def kl(self) -> float:
        """KL(source || engine) in nats, above 0."""
        return max(self.quality.kl, LEAST)


def points(found: Index, lanes: Sequence[Lane], case: Case) -> list[Point]:
    """Every lane whose closeness and speed are both known, in their order."""
    speeds = [(lane, table.rounds(found, lane, case, "speed")) for lane in lanes]
    return [
        Point(lane, lane.quality, statistics.median(by_round.values()))
        for lane, by_round in speeds
        if lane.quality is not None and by_round
    ]


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


def speed_at(kl: float, line: Sequence[Point]) -> float | None:
    """Tokens a second on a frontier at a KL: between two points straight in the logarithms of both.

    Beyond its fastest point that point's speed, because a file may always be closer; None where no point is as close.
    """
    if not line or kl < line[0].kl:
        return None
    for left, right in pairwise(line):
        if left.kl <= kl <= right.kl:
            part = math.log(kl / left.kl) / math.log(right.kl / left.kl)
            return math.exp((1 - part) * math.log(left.speed) + part * math.log(right.speed))
    return line[-1].speed
