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
SURE = f"{100 * (1 - ALPHA):g} %"  # as tables call their intervals
DRAWS = 200_000  # of a parametric bootstrap: 2,000 of them past the threshold
LABELLINGS = 4_000  # where there are more, so many are drawn
MANY_ROUNDS = 16  # by order their interval is narrow enough, and stray ones do not matter
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
    """Of the median of values above 0: by parametric bootstrap, of many values by their order; None of fewer than three."""
    if len(values) < LEAST_ROUNDS:
        return None
    if len(values) >= MANY_ROUNDS and alpha >= 2 ** (1 - len(values)):
        return _by_order(sorted(values), alpha)
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

    The value is the ratio of geometric means, stray rounds drawn in: over the labellings a median moves in leaps. A figure of
    fewer than three rounds has no interval, and none has one where there are too few labellings for `alpha`.
    """
    enough = [pair for pair in pairs if min(len(figure.by_round) for figure in pair) >= LEAST_ROUNDS]
    compared = iter(_compared(enough, seed, alpha) if enough else ())
    found = []
    for old, new in pairs:
        if min(len(old.by_round), len(new.by_round)) < LEAST_ROUNDS:
            found.append(Ratio(new.median / old.median))
            continue
        difference, width = next(compared)
        found.append(_judged(math.exp(difference), None if width is None else _around(difference, width), higher=new.higher))
    return tuple(found)


def _compared(pairs: Sequence[tuple[Figure, Figure]], seed: int, alpha: float) -> list[tuple[float, float | None]]:
    """Of each pair the difference of logarithms, and the interval's width to either side of it."""
    before, after = (_table([pair[side] for pair in pairs]) for side in (0, 1))
    labels = _labellings(len(before), len(after), seed)
    differences, errors = _differences(labels, _drawn_in(np.concatenate([before, after])))
    allowed = int(alpha * len(labels) + 1e-9)
    if allowed < (2 if len(before) == len(after) else 1):  # with old and new exchanged, a difference is as large as it was
        return [(difference, None) for difference in differences[0].tolist()]
    largest = np.sort((np.abs(differences) / errors).max(axis=1))
    threshold = float(largest[-1 - allowed]) * (1 + 1e-9)  # what only rounding makes larger is not
    return list(zip(differences[0].tolist(), (threshold * errors[0]).tolist(), strict=True))


def _drawn_in(logs: Values) -> Values:
    """The highest and the lowest value of both runs together become the next to them, figure by figure.

    A stray round then counts as far as others went as well. Labels have no part in it, so that labellings stay alike.
    """
    ordered = np.sort(logs, axis=0)  # NaN last
    last = (~np.isnan(logs)).sum(axis=0) - 1
    return np.clip(logs, ordered[1], np.take_along_axis(ordered, last[None] - 1, axis=0))


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


def _by_order(ordered: Sequence[float], alpha: float) -> tuple[float, float]:
    """Between the value of a rank from below and that from above: of each, half lie below the median by the toss of a coin.

    It holds for noise of any kind, and stray rounds make it no wider (Thompson 1936, "On confidence ranges for the median").
    """
    count, rank, missed = len(ordered), 0, 0.0
    while (missed := missed + 2 * math.comb(count, rank) / 2**count) <= alpha:
        rank += 1
    return ordered[rank - 1], ordered[count - rank]


@functools.lru_cache(maxsize=32)
def _threshold(count: int, alpha: float, seed: int) -> float:
    """How many mean distances from the median the median of `count` normal values lies off, `alpha` of the time."""
    drawn = np.random.default_rng(seed).standard_normal((DRAWS, count))
    middle = np.median(drawn, axis=1)
    apart = np.abs(drawn - middle[:, None]).mean(axis=1)
    return float(np.quantile(np.abs(middle) / apart, 1 - alpha))
