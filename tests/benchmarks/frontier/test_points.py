"""Frontiers and equal closeness, on figures made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.benchmarks.frontier.points import Point, fastest_as_close, frontier, points, speed_at


def point(name: str, kl: float, speed: float, divergences: tuple[float, ...] = ()) -> Point:
    return Point(name, kl, speed, {"divergences": divergences or (kl, kl, kl)})


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
    def sample(engine: str, number: int, speed: float, threads: int = 1, model: str = "tiny") -> dict[str, Any]:
        return {"round": number, "model": model, "engine": engine, "threads": threads, "decode_32": speed}

    names = ("a", "b", "unjudged", "unmeasured", "copy")
    report = {
        "engines": [{"model": "tiny", "engine": each} for each in names] + [{"model": "other", "engine": "a"}],
        "quality": [
            {"model": "tiny", "engine": "a", "kl": 0.1, "divergences": [0.1]},
            {"model": "tiny", "engine": "b", "kl": 0.2, "divergences": [0.2]},
            {"model": "tiny", "engine": "unjudged", "error": "it fell over"},
            {"model": "tiny", "engine": "unmeasured", "kl": 0.3, "divergences": [0.3]},
            {"model": "tiny", "engine": "copy", "kl": -1e-17, "divergences": [0.0]},
            {"model": "other", "engine": "a", "kl": 0.7, "divergences": [0.7]},
        ],
        "samples": [
            *(sample("a", number, speed) for number, speed in enumerate((10.0, 90.0, 20.0))),
            sample("a", 0, 500.0, threads=2),
            sample("a", 0, 600.0, model="other"),
            sample("b", 0, 30.0),
            sample("unjudged", 0, 40.0),
            {"round": 0, "model": "tiny", "engine": "unmeasured", "threads": 1, "error": "no room"},
            sample("copy", 0, 50.0),
        ],
    }
    found = points(report, "tiny", 1, "decode_32")
    assert [(each.engine, each.kl, each.speed) for each in found] == [("a", 0.1, 20), ("b", 0.2, 30), ("copy", 1e-9, 50)]
    assert speed_at(1e-5, frontier(found)) == 50  # a KL of 0 has a place on a logarithmic axis
