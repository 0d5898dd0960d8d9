"""How far to trust a figure: its spread, an interval of its median, and whether two figures really differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgellm.benchmarks.figures import Figure

ALPHA = 0.01
RESAMPLES = 10_000

Verdict = Literal["faster", "slower", "no difference"]


@dataclass(frozen=True)
class Spread:
    """Of values.

    Attributes:
        median, low, high: the middle one, the lowest, the highest.
        mad: median distance from the median.
    """

    median: float
    low: float
    high: float
    mad: float

    def text(self, digits: int = 0) -> str:
        """As `median (low-high)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """Of one value or more.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("no values have no spread")
    median = statistics.median(values)
    return Spread(median, min(values), max(values), statistics.median(abs(value - median) for value in values))


@dataclass(frozen=True)
class Ratio:
    """New over old, of one measure.

    Attributes:
        value: the median over rounds of new / old; above 1 where the new value is the larger one.
        low, high: the interval; None where there are too few rounds for one.
        verdict: "faster" where the interval clears 1 towards better in this measure (less memory, too), "slower" towards worse;
            None where there is no interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    verdict: Verdict | None = None


def interval(values: Sequence[float], seed: int, alpha: float = ALPHA) -> tuple[float, float] | None:
    """Of the values' median, by bootstrap; None of fewer than two values."""
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(seed).choice(np.asarray(values, np.float64), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def ratio(old: Figure, new: Figure, seed: int, alpha: float = ALPHA) -> Ratio:
    """New over old, paired over the rounds that both have: what slowed a whole round down is in neither.

    Where no round is in both, the medians' ratio, without an interval.
    """
    rounds = sorted(old.by_round.keys() & new.by_round.keys())
    if not rounds:
        return Ratio(new.median / old.median)
    logs = [math.log(new.by_round[number] / old.by_round[number]) for number in rounds]
    value = math.exp(statistics.median(logs))
    found = interval(logs, seed, alpha)
    if found is None:
        return Ratio(value)
    low, high = math.exp(found[0]), math.exp(found[1])
    return Ratio(value, low, high, verdict(low, high, higher=new.higher))


def verdict(low: float, high: float, *, higher: bool) -> Verdict:
    """What an interval of new / old says, where more is better (`higher`) or less."""
    if low <= 1 <= high:
        return "no difference"
    return "faster" if (low > 1) == higher else "slower"
