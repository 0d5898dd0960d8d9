"""Frontiers and equal closeness, on figures made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.benchmarks.figures import Figure
from edgellm.benchmarks.frontier.points import Point, decode_at, fastest_as_close, frontier, points
from edgellm.benchmarks.peers import table
from edgellm.benchmarks.result import Quality, Run
from tests.frontier_run import SHORT, decoded, judged, lane, made


def point(name: str, kl: float, speed: float, divergences: tuple[float, ...] = (), **by_round: float) -> Point:
    """Of so many tokens a second, in round 1 if no others are told (as `r2=...`)."""
    mine = lane(f"llama.cpp:{name}")
    speeds = {int(number[1:]): value for number, value in by_round.items()} or {1: speed}
    decode = Figure(mine.id, SHORT, "speed", "tok/s", True, speeds)
    return Point(mine, Quality("", kl, 0.01, 0.9, divergences or (kl, kl, kl)), decode)


def speed_at(kl: float, line: list[Point]) -> float | None:
    found = decode_at(kl, line)
    return None if found is None else found.median


CLOSE, MIDDLE, FAST = point("q8_0", 0.005, 40), point("q5_0", 0.05, 80), point("q4_0", 0.3, 120)
BEATEN = point("q5_k", 0.06, 79)  # farther and slower than MIDDLE


def test_a_frontier_leaves_out_what_another_beats_in_both() -> None:
    assert frontier([FAST, BEATEN, CLOSE, MIDDLE]) == [CLOSE, MIDDLE, FAST]
    assert frontier([point("same kl, slower", 0.05, 70), MIDDLE]) == [MIDDLE]
    assert frontier([point("same speed, farther", 0.07, 80), MIDDLE]) == [MIDDLE]
    assert frontier([MIDDLE, point("equal", 0.05, 80)]) == [MIDDLE]
    assert frontier([MIDDLE]) == [MIDDLE]
    assert frontier([]) == []


FIGURES = st.tuples(st.sampled_from([0.01, 0.02, 0.05, 0.1]), st.sampled_from([10.0, 20.0, 30.0, 40.0]))


@given(st.lists(FIGURES, max_size=8))
def test_a_frontier_by_its_definition(pairs: list[tuple[float, float]]) -> None:
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    expected = {each for each in pairs if not any(beats(other, each) for other in pairs)}
    found = [(each.kl, each.speed) for each in frontier([point("it", *pair) for pair in pairs])]
    assert found == sorted(expected)


def test_between_two_files_the_speed_is_straight_in_logarithms() -> None:
    line = [CLOSE, MIDDLE, FAST]
    assert speed_at(0.05, line) == pytest.approx(80)
    assert speed_at(math.sqrt(0.005 * 0.05), line) == pytest.approx(math.sqrt(40 * 80))  # half way in both
    assert speed_at(0.05 * 6**0.25, line) == pytest.approx(80 * 1.5**0.25)  # a quarter of the way to six times the KL
    assert speed_at(0.005, line) == pytest.approx(40)


def test_between_two_files_rounds_stay_rounds() -> None:
    """Whatever a round did to both, it did to what lies between them."""
    slow, fast = point("slow", 0.01, 0, r1=10.0, r2=40.0, r3=20.0), point("fast", 1.0, 0, r1=40.0, r2=160.0, r4=1.0)
    found = decode_at(0.1, [slow, fast])
    assert found is not None
    assert found.by_round == pytest.approx({1: 20, 2: 80})
    assert decode_at(0.1, [slow, point("of other rounds", 1.0, 0, r9=40.0)]) is None


def test_beyond_the_ends() -> None:
    """A file may always be closer than is asked, so the fastest serves any KL above its own; none serves one below all."""
    assert speed_at(2.0, [CLOSE, MIDDLE, FAST]) == 120
    assert speed_at(0.0049, [CLOSE, MIDDLE, FAST]) is None
    assert speed_at(0.06, [MIDDLE]) == 80
    assert speed_at(0.04, [MIDDLE]) is None
    assert speed_at(0.05, []) is None


def test_the_fastest_of_those_that_are_as_close() -> None:
    theirs = [CLOSE, MIDDLE, BEATEN, FAST]
    assert fastest_as_close(point("ours", 0.3, 1), theirs) == FAST
    assert fastest_as_close(point("ours", 0.299, 1), theirs) == MIDDLE  # the difference is the same at every position: no tie
    assert fastest_as_close(point("ours", 0.055, 1), theirs) == MIDDLE
    assert fastest_as_close(point("ours", 0.004, 1), theirs) is None
    assert fastest_as_close(point("ours", 0.3, 1), []) is None


def test_a_difference_within_its_error_is_a_tie() -> None:
    """Differences of .04, -.02 and .01: a mean of .01 with a standard error of .0173."""
    ours = point("ours", 0.05, 1, (0.03, 0.07, 0.05))
    noisy = point("noisy", 0.06, 90, (0.07, 0.05, 0.06))
    assert fastest_as_close(ours, [MIDDLE, noisy]) == noisy
    steady = point("steady", 0.06, 90, (0.04, 0.08, 0.06))
    assert fastest_as_close(ours, [MIDDLE, steady]) == MIDDLE


def test_points_are_the_medians_of_files_whose_quality_and_speed_are_known() -> None:
    a, b, unjudged, unmeasured, copy = (lane(f"llama.cpp:{name}") for name in ("a", "b", "unjudged", "unmeasured", "copy"))
    two, other = lane("llama.cpp:a", threads=2), lane("llama.cpp:a", model="other")
    lanes = (
        replace(a, quality=judged(0.1)),
        replace(b, quality=judged(0.2)),
        unjudged,
        replace(unmeasured, quality=judged(0.3), failed="no room"),
        replace(copy, quality=judged(-1e-17)),
        replace(two, quality=judged(0.1)),
        replace(other, quality=judged(0.7)),
    )
    samples = (
        *(decoded(a, SHORT, number, speed) for number, speed in enumerate((10.0, 90.0, 20.0), start=1)),
        decoded(a, SHORT, 0, 1000.0),  # the warm-up
        decoded(two, SHORT, 1, 500.0),
        decoded(other, SHORT, 1, 600.0),
        decoded(b, SHORT, 1, 30.0),
        decoded(unjudged, SHORT, 1, 40.0),
        decoded(copy, SHORT, 1, 50.0),
    )
    run: Run = replace(made(), lanes=lanes, samples=samples)
    found = points(table.index(run), table.rows(run, "tiny", 1), SHORT)
    assert [(each.lane.variant, each.kl, pytest.approx(each.speed)) for each in found] == [
        ("a", 0.1, 20), ("b", 0.2, 30), ("copy", 1e-9, 50),
    ]  # fmt: skip
    assert speed_at(1e-5, frontier(found)) == pytest.approx(50)  # a KL of 0 has a place on a logarithmic axis
