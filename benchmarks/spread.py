"""How far to trust a figure: its spread, an interval of its median, and whether two figures really differ.

    ratio(old, new, seed)         two lanes of one run, whose rounds are pairs: they were measured close to each other
    unpaired(pairs, seed)         two runs, whose rounds are no pairs, and many measures at once

Noise multiplies: a busy machine makes a step some percent slower, whatever a step takes. So all of it is counted in logarithms,
and a figure and its reciprocal (tok/s and s/tok) say the same.

**The interval of one median.** Drawing the rounds themselves again and again, as a bootstrap mostly does, cannot give 99 % from
five of them: it ends at the lowest and the highest, between which a median lies 94 times of 100. So the bootstrap is the
parametric one: what is drawn is rounds of normal noise (of logarithms), as many as there were, and out of the draws comes how
many mean distances from the median the true one lies off, `alpha` of the time. Median and mean distance bear a stray round.

**Two runs.** If nothing differs, then which run a round belongs to is a label, and any other labelling is as likely. Each
comparison's difference of means of logarithms, over its standard error and STEADY, is computed for every labelling, and the
largest over all comparisons is kept: what the largest exceeds in `alpha` of the labellings is the threshold of all. So of all
comparisons together one is wrong `alpha` of the time, whatever the noise looks like, and with five rounds each (252 labellings)
.01 can be reached, which correcting each comparison for their number would need eight for. (Westfall and Young's maxT, 1993; a
constant beside the standard error as in Tusher, Tibshirani and Chu, PNAS 98, 2001.)
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.benchmarks.figures import Figure

ALPHA = 0.01
DRAWS = 200_000  # of a parametric bootstrap: 2,000 of them past the threshold
LABELLINGS = 10_000  # where there are more, so many are drawn
LEAST_ROUNDS = 3
# No figure is steadier than this, so that equal values by chance are no certainty: of a logarithm, so a part in a thousand.
FLOOR = 1e-3
# Beside a standard error: five rounds that happen to lie close together would make any difference look large.
STEADY = 0.01

Verdict = Literal["faster", "slower", "no difference"]
Values = NDArray[np.float64]


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
        value: above 1 where the new value is the larger one.
        low, high: the interval; None where there are too few rounds for one.
        verdict: "faster" where the interval clears 1 towards better in this measure (less memory, too), "slower" towards worse;
            None where there is no interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    verdict: Verdict | None = None


def interval(values: Sequence[float], seed: int, alpha: float = ALPHA) -> tuple[float, float] | None:
    """Of the median of values above 0, by parametric bootstrap; None of fewer than three."""
    if len(values) < LEAST_ROUNDS:
        return None
    logs = [math.log(value) for value in values]
    middle = statistics.median(logs)
    apart = max(statistics.fmean(abs(value - middle) for value in logs), FLOOR)
    return _around(middle, _threshold(len(logs), alpha, seed) * apart)


def ratio(old: Figure, new: Figure, seed: int, alpha: float = ALPHA) -> Ratio:
    """New over old of one run, paired over the rounds that both have: what slowed a whole round down is in neither.

    The value is the median of the rounds' ratios. Where no round is in both, it is the medians' ratio; there and where fewer
    than three are, without an interval.
    """
    rounds = sorted(old.by_round.keys() & new.by_round.keys())
    if not rounds:
        return Ratio(new.median / old.median)
    ratios = [new.by_round[number] / old.by_round[number] for number in rounds]
    return _judged(math.exp(statistics.median(map(math.log, ratios))), interval(ratios, seed, alpha), higher=new.higher)


def unpaired(pairs: Sequence[tuple[Figure, Figure]], seed: int, alpha: float = ALPHA) -> tuple[Ratio, ...]:
    """New over old of two runs, (old, new) each; wrong in one or more of them at most `alpha` of the time.

    The value is the ratio of geometric means: over the labellings a median moves in leaps. A figure of fewer than three rounds
    has no interval, and none has one where there are too few labellings for `alpha`.
    """
    enough = [index for index, pair in enumerate(pairs) if min(len(figure.by_round) for figure in pair) >= LEAST_ROUNDS]
    widths = dict(zip(enough, _widths([pairs[index] for index in enough], seed, alpha), strict=True)) if enough else {}
    found = []
    for index, (old, new) in enumerate(pairs):
        difference = _mean_log(new) - _mean_log(old)
        width = widths.get(index)
        found.append(_judged(math.exp(difference), None if width is None else _around(difference, width), higher=new.higher))
    return tuple(found)


def _mean_log(figure: Figure) -> float:
    return statistics.fmean(map(math.log, figure.values))


def _widths(pairs: Sequence[tuple[Figure, Figure]], seed: int, alpha: float) -> list[float | None]:
    """Of the interval to either side of each difference of means."""
    before, after = (_table([pair[side] for pair in pairs]) for side in (0, 1))
    labels = _labellings(len(before), len(after), seed)
    allowed = int(alpha * len(labels) + 1e-9)
    if allowed < (2 if len(before) == len(after) else 1):  # with old and new exchanged, a difference is as large as it was
        return [None] * len(pairs)
    differences, errors = _differences(labels, np.concatenate([before, after]))
    largest = np.sort((np.abs(differences) / errors).max(axis=1))
    threshold = float(largest[-1 - allowed]) * (1 + 1e-9)  # what only rounding makes larger is not
    return [threshold * error for error in errors[0].tolist()]


def _table(figures: Sequence[Figure]) -> Values:
    """Logarithms, [rounds, figures]; NaN where a figure lacks a round that another has."""
    rounds = sorted({number for figure in figures for number in figure.by_round})
    return np.array([[math.log(figure.by_round.get(number, math.nan)) for figure in figures] for number in rounds])


def _labellings(before: int, after: int, seed: int) -> NDArray[np.bool_]:
    """Which rounds are called old, [labellings, rounds]; as it was comes first."""
    rounds = before + after
    if math.comb(rounds, before) <= LABELLINGS:
        chosen = np.array(list(itertools.combinations(range(rounds), before)))
    else:
        random = np.random.default_rng(seed)
        chosen = random.permuted(np.tile(np.arange(rounds), (LABELLINGS, 1)), axis=1)[:, :before]
        chosen[0] = range(before)
    labels = np.zeros((len(chosen), rounds), np.bool_)
    np.put_along_axis(labels, chosen, True, axis=1)
    return labels


def _differences(labels: NDArray[np.bool_], logs: Values) -> tuple[Values, Values]:
    """New mean minus old mean, and its standard error plus STEADY, of logs [rounds, figures]; both [labellings, figures]."""
    there = ~np.isnan(logs)
    logs = np.where(there, logs - np.nanmean(logs, axis=0), 0.0)
    old = labels.astype(np.float64)
    counts = [np.maximum(each @ there, 1) for each in (old, 1 - old)]  # 0 where a label takes all that there is: its sum is 0
    sums = [each @ logs for each in (old, 1 - old)]
    within = (logs**2).sum(axis=0) - sum(total**2 / count for total, count in zip(sums, counts, strict=True))
    variance = np.maximum(within, 0) / np.maximum(there.sum(axis=0) - 2, 1)
    error = np.sqrt(variance * (1 / counts[0] + 1 / counts[1]))
    return sums[1] / counts[1] - sums[0] / counts[0], error + STEADY


def _judged(value: float, around: tuple[float, float] | None, *, higher: bool) -> Ratio:
    if around is None:
        return Ratio(value)
    low, high = around
    if low <= 1 <= high:
        return Ratio(value, low, high, "no difference")
    return Ratio(value, low, high, "faster" if (low > 1) == higher else "slower")


def _around(middle: float, width: float) -> tuple[float, float]:
    """From logarithms; numbers that JSON can hold, however wide it is."""
    return math.exp(max(middle - width, -700)), math.exp(min(middle + width, 700))


@functools.lru_cache(maxsize=32)
def _threshold(count: int, alpha: float, seed: int) -> float:
    """How many mean distances from the median the median of `count` normal values lies off, `alpha` of the time."""
    drawn = np.random.default_rng(seed).standard_normal((DRAWS, count))
    middle = np.median(drawn, axis=1)
    apart = np.abs(drawn - middle[:, None]).mean(axis=1)
    return float(np.quantile(np.abs(middle) / apart, 1 - alpha))
