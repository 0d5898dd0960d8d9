"""Names beside points and lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.benchmarks.report.place import SPOTS, apart, beside

HEIGHTS = st.lists(st.floats(0, 1), max_size=9)


@given(HEIGHTS)
def test_names_keep_their_order_their_distance_and_stay_inside(wanted: list[float]) -> None:
    places = apart(wanted, 0.1)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    heights = [places[index] for index in order]
    assert all(b - a >= 0.1 - 1e-9 for a, b in zip(heights, heights[1:], strict=False))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in heights)


def test_names_that_have_room_stay_where_they_belong() -> None:
    assert apart([0.9, 0.1, 0.5], 0.1) == [0.9, 0.1, 0.5]


def test_more_names_than_there_is_room_for_share_it() -> None:
    places = apart([0.5] * 20, 0.2)
    assert max(places) <= 1
    assert sorted(places) == pytest.approx([places[0] + 0.05 * number for number in range(20)])


BOX = (0.0, 0.0, 200.0, 200.0)


def test_a_name_goes_to_the_right_unless_that_is_taken_or_outside() -> None:
    assert beside([(50, 50)], [(40, 10)], BOX, 1.0) == [SPOTS[0]]
    assert beside([(190, 50)], [(40, 10)], BOX, 1.0) == [SPOTS[1]]
    left, right = beside([(50, 50), (70, 50)], [(40, 10), (40, 10)], BOX, 1.0)
    assert (left, right) == (SPOTS[1], SPOTS[0])
