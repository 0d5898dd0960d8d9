"""Files as points of quality and speed, and what lies on the frontier of a set of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from edgellm.benchmarks.peers import table

LEAST = 1e-9  # a KL has a logarithm


@dataclass(frozen=True)
class Point:
    """A file at one number of threads and one depth.

    Attributes:
        engine: its row in the report.
        kl: KL(source || engine) in nats.
        speed: tokens a second, the median over rounds.
        quality: what the report says of its closeness, KL by position included.
    """

    engine: str
    kl: float
    speed: float
    quality: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def points(report: Mapping[str, Any], model: str, threads: int, measure: str) -> list[Point]:
    """Every file of a model whose closeness and speed are both known, in the report's order."""
    found = []
    for each in report["engines"]:
        quality = table.quality_of(report, model, each["engine"])
        speeds = table.figures(report, model, each["engine"], threads, measure)
        if each["model"] == model and quality is not None and speeds:
            found.append(Point(each["engine"], max(quality["kl"], LEAST), statistics.median(speeds.values()), quality))
    return found


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
