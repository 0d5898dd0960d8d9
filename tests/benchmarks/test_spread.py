"""Known samples in, known statistics out; how often a verdict is wrong, and how often it sees what is there.

Simulated rounds are as noisy as real ones: log-normal, 4 % a round, and one round of twenty takes 1.2 to 1.6 times as long.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.benchmarks.figures import Figure
from edgellm.benchmarks.result import Case
from edgellm.benchmarks.spread import Ratio, Spread, interval, ratio, spread, unpaired
from tests.runs import at_most

values = st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=9)
several = st.lists(st.floats(1e-3, 1e6), min_size=3, max_size=9)
factors = st.floats(1e-3, 1e3)


def figure(rounds: Sequence[float], *, higher: bool = True, first: int = 1) -> Figure:
    by_round = {number: float(value) for number, value in enumerate(rounds, start=first)}
    return Figure("a", Case("prefill", prompt=128), "speed", "tok/s", higher, by_round)


def test_a_spread_by_hand() -> None:
    assert spread([4.0, 1.0, 2.0, 9.0]) == Spread(median=3.0, low=1.0, high=9.0, mad=1.5)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 0.0)
    assert spread([10.0, 20.0, 30.0]).text(1) == "20.0 (10.0-30.0)"
    with pytest.raises(ValueError, match="no values"):
        spread([])


@given(values, st.randoms())
def test_a_spread_knows_no_order(given: list[float], random: object) -> None:
    shuffled = list(given)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = spread(given)
    assert spread(shuffled) == found
    assert found.low <= found.median <= found.high
    assert 0 <= found.mad <= found.high - found.low


def test_an_interval_of_three_values_by_an_independent_count() -> None:
    """Of three normal values |middle| / mean distance exceeds a bound as often as numbers drawn elsewhere say."""
    low, high = interval([1.0, math.e**0.03, math.e**-0.03], 0, alpha=0.1) or (0, 0)
    bound = math.log(high) / 0.02
    drawn = np.sort(np.random.default_rng(99).standard_normal((400_000, 3)), axis=1)
    beyond = np.abs(drawn[:, 1]) > bound * (drawn[:, 2] - drawn[:, 0]) / 3
    assert beyond.mean() == pytest.approx(0.1, abs=0.003)
    assert math.log(low) == pytest.approx(-math.log(high))


@given(several, factors)
@settings(deadline=None)
def test_an_interval_scales_and_turns_over_with_its_values(given: list[float], factor: float) -> None:
    low, high = interval(given, 1) or (0, 0)
    assert low < statistics.median(given) * (1 + 1e-9) < high * (1 + 1e-6)
    assert interval([value * factor for value in given], 1) == pytest.approx((low * factor, high * factor), rel=1e-6)
    if len(given) % 2:
        assert interval([1 / value for value in given], 1) == pytest.approx((1 / high, 1 / low), rel=1e-6)


@given(several)
@settings(deadline=None)
def test_a_surer_interval_is_wider(given: list[float]) -> None:
    wide, narrow = interval(given, 0, 0.01) or (0, 0), interval(given, 0, 0.1) or (0, 0)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_of_many_rounds_the_order_decides_and_stray_ones_do_not() -> None:
    """Of 16, at most two lie to one side of the median by chance in 2 * (1 + 16 + 120) of 2**16 cases: .0042."""
    values = [float(each) for each in range(1, 17)]
    assert interval(values, 0, alpha=0.005) == (3, 14)
    assert interval([*values[:-1], 1e9], 0, alpha=0.005) == (3, 14)
    assert interval(values, 0, alpha=0.0041) == (2, 15)
    assert interval(values, 0, alpha=2**-15) == (1, 16)


@pytest.mark.parametrize("rounds", [1, 2])
def test_too_few_rounds_have_no_interval_and_no_verdict(rounds: int) -> None:
    assert interval([1.0] * rounds, 0) is None
    assert ratio(figure([1.0] * rounds), figure([2.0] * rounds), 0) == Ratio(2.0, None, None, None)
    (found,) = unpaired([(figure([1.0] * rounds), figure([2.0] * rounds))], 0)
    assert found == Ratio(2.0)


def test_a_ratio_is_the_median_of_its_rounds() -> None:
    found = ratio(figure([10.0, 20.0, 40.0]), figure([11.0, 24.0, 42.0]), 0)
    assert found.value == pytest.approx(1.1)  # of 1.1, 1.2, 1.05; the medians' would be 1.2


def test_what_slows_both_down_in_a_round_is_in_no_ratio() -> None:
    old = [100.0, 31.0, 80.0, 55.0, 100.0]
    found = ratio(figure(old), figure([value * 1.02 for value in old]), 0)
    assert (found.value, found.verdict) == (pytest.approx(1.02), "faster")


def test_only_rounds_that_both_have_are_pairs() -> None:
    old, new = figure([1.0, 2.0, 4.0, 8.0, 16.0]), figure([12.0, 24.0, 48.0, 5.0], first=3)
    assert ratio(old, new, 0).value == pytest.approx(3.0)
    assert ratio(figure([1.0, 3.0]), figure([6.0, 8.0], first=7), 0) == Ratio(3.5, None, None, None)


@pytest.mark.parametrize(("higher", "verdict"), [(True, "faster"), (False, "slower")])
def test_a_verdict_says_better_or_worse(higher: bool, verdict: str) -> None:
    old, new = figure([10.0, 10.1, 9.9, 10.0], higher=higher), figure([20.0, 20.1, 20.2, 19.9], higher=higher)
    assert ratio(old, new, 0).verdict == verdict
    assert ratio(new, old, 0).verdict == {"faster": "slower", "slower": "faster"}[verdict]
    assert ratio(old, old, 0).verdict == "no difference"


@given(st.lists(st.tuples(st.floats(1.0, 100.0), st.floats(1.0, 100.0)), min_size=3, max_size=8), factors, st.randoms())
@settings(deadline=None)
def test_a_ratio_scales_turns_over_and_knows_no_order(rounds: list[tuple[float, float]], factor: float, random: object) -> None:
    old, new = zip(*rounds, strict=True)
    found = ratio(figure(old), figure(new), 3)
    low, high = found.low or 0, found.high or 0
    scaled = ratio(figure(old), figure([value * factor for value in new]), 3)
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx(
        (found.value * factor, low * factor, high * factor), rel=1e-6
    )
    turned = ratio(figure(new), figure(old), 3)
    assert (turned.value, turned.low, turned.high) == pytest.approx((1 / found.value, 1 / high, 1 / low), rel=1e-6)
    shuffled = list(rounds)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = ratio(*(figure(side) for side in zip(*shuffled, strict=True)), 3)
    assert (again.value, again.low, again.high) == pytest.approx((found.value, low, high), rel=1e-6)


def noisy(random: np.random.Generator, shape: tuple[int, ...], noise: float = 0.04, outliers: float = 0.05) -> np.ndarray:
    stray = np.where(random.random(shape) < outliers, random.uniform(1.2, 1.6, shape), 1.0)
    return np.exp(random.normal(0, noise, shape)) * stray


def differing(rounds: int, slow: float, trials: int = 2000, outliers: float = 0.05, seed: int = 5) -> int:
    """In how many of the simulated pairs of lanes a difference is claimed."""
    times = noisy(np.random.default_rng(seed), (trials, 2, rounds), outliers=outliers)
    return sum(
        ratio(figure(old, higher=False), figure(new * slow, higher=False), 0).verdict != "no difference" for old, new in times
    )


@pytest.mark.parametrize("outliers", [0.0, 0.05])
@pytest.mark.parametrize("rounds", [5, 8])
def test_lanes_that_do_not_differ_are_said_to_one_time_of_a_hundred(rounds: int, outliers: float) -> None:
    assert differing(rounds, 1.0, outliers=outliers) <= at_most(2000, 0.01)


@pytest.mark.parametrize(("rounds", "outliers"), [(5, 0.0), (8, 0.05)])
def test_a_slow_down_of_30_percent_is_found(rounds: int, outliers: float) -> None:
    """Five rounds where none strays, eight where one of twenty does (then five find 7 of 10)."""
    assert differing(rounds, 1.3, trials=500, outliers=outliers) > 0.9 * 500


def test_two_runs_by_hand() -> None:
    """Five rounds each: a difference is claimed where all of one side lie beyond all of the other, and by more than STEADY."""
    old, new = figure([100.0, 101.0, 99.0, 100.0, 102.0]), figure([80.0, 81.0, 79.0, 80.0, 82.0])
    (found,) = unpaired([(old, new)], 0)
    assert found.value == pytest.approx(
        statistics.geometric_mean([80, 81, 80, 80, 82]) / statistics.geometric_mean([100, 101, 99, 100, 101])
    ), "the lowest and the highest of all ten are drawn in"
    assert found.verdict == "slower"
    crossing = figure([80.0, 81.0, 79.0, 80.0, 101.5])
    assert unpaired([(old, crossing)], 0)[0].verdict == "no difference"


@pytest.mark.parametrize(("before", "after", "verdict"), [(4, 4, None), (3, 6, None), (4, 5, "slower"), (5, 5, "slower")])
def test_two_runs_need_labellings_enough(before: int, after: int, verdict: str | None) -> None:
    """A hundred, and twice as many where exchanging both runs gives the same difference: there are 70, 84, 126 and 252."""
    random = np.random.default_rng(0)
    old, new = figure(100 * noisy(random, (before,), 0.001, 0)), figure(50 * noisy(random, (after,), 0.001, 0))
    assert unpaired([(old, new)], 0)[0].verdict == verdict


def test_of_many_labellings_some_are_drawn() -> None:
    random = np.random.default_rng(0)
    old, new = figure(noisy(random, (12,))), figure(1.3 * noisy(random, (12,)), higher=False)
    assert unpaired([(old, new)], 0)[0].verdict == "slower"
    assert unpaired([(old, new)], 0) == unpaired([(old, new)], 0)


def test_a_round_that_one_measure_lacks_is_left_out_of_that_measure_alone() -> None:
    random = np.random.default_rng(0)
    old, new = figure(noisy(random, (6,), outliers=0)), figure(2 * noisy(random, (6,), outliers=0), higher=False)
    short = Figure(**{**vars(new), "by_round": {number: value for number, value in new.by_round.items() if number != 2}})
    whole, lacking = unpaired([(old, new), (old, short)], 0)
    assert (whole.verdict, lacking.verdict) == ("slower", "slower")
    assert lacking.value == pytest.approx(
        statistics.geometric_mean(short.values) / statistics.geometric_mean(old.values), rel=0.02
    )
    assert (lacking.low, lacking.high) != (whole.low, whole.high)


def two_states(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A clock that is either fast or slow for a whole round."""
    return random.choice([1.0, 1.1], shape) * np.exp(random.normal(0, 0.01, shape))


@pytest.mark.parametrize("noise", [noisy, two_states])
@pytest.mark.parametrize("rounds", [5, 6])
def test_of_all_measures_of_two_runs_one_is_wrong_one_time_of_a_hundred(noise: object, rounds: int) -> None:
    """Twelve measures of very different noise at once."""
    random = np.random.default_rng(rounds)
    scale = np.geomspace(0.1, 4, 12)[:, None]
    wrong = 0
    for _ in range(1000):
        old, new = (noise(random, (12, rounds)) ** scale for _ in range(2))  # type: ignore[operator]
        found = unpaired([(figure(a), figure(b)) for a, b in zip(old, new, strict=True)], 0)
        wrong += any(each.verdict != "no difference" for each in found)
    assert wrong <= at_most(1000, 0.01)
