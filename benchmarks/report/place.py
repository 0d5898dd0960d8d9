"""Where names stand beside what they name, so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Align = Literal["left", "right", "center"]
Spot = tuple[int, int, Align]  # points to the right of and above what is named, and which end of the name is there
Box = tuple[float, float, float, float]  # left, bottom, right, top

SPOTS: tuple[Spot, ...] = (
    (8, 0, "left"),
    (-8, 0, "right"),
    (0, 11, "center"),
    (0, -11, "center"),
    (8, 10, "left"),
    (-8, -10, "right"),
)
HALF = 5.0  # of a symbol's width


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights from 0 to 1, near the wanted ones and in their order, `gap` between neighbours (less where there is no room)."""
    gap = min(gap, 1 / max(len(wanted), 1))
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places = [0.0] * len(wanted)
    floor = 0.0
    for index in order:
        places[index] = max(wanted[index], floor)
        floor = places[index] + gap
    ceiling = 1.0
    for index in reversed(order):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - gap
    return places


def beside(points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], box: Box, scale: float) -> list[Spot]:
    """For each point the spot where its name, so wide and high, covers least of symbols and of the names before it.

    Everything is in pixels, `scale` of them a point; what would be outside of `box` counts as covering much.
    """
    taken = [(x - HALF * scale, y - HALF * scale, x + HALF * scale, y + HALF * scale) for x, y in points]
    found = []
    for point, size in zip(points, sizes, strict=True):
        rated = [(_cost(spot, point, size, taken, box, scale), number) for number, spot in enumerate(SPOTS)]
        spot = SPOTS[min(rated)[1]]
        taken.append(_place(spot, point, size, scale))
        found.append(spot)
    return found


def _cost(
    spot: Spot, point: tuple[float, float], size: tuple[float, float], taken: Sequence[Box], box: Box, scale: float
) -> float:
    place = _place(spot, point, size, scale)
    outside = max(0.0, box[0] - place[0]) + max(0.0, place[2] - box[2])
    return sum(_covers(place, other) for other in taken) + 100 * outside


def _place(spot: Spot, point: tuple[float, float], size: tuple[float, float], scale: float) -> Box:
    (x, y), (width, height), (right, up, align) = point, size, spot
    left = x + right * scale - {"left": 0.0, "right": width, "center": width / 2}[align]
    return left, y + up * scale - height / 2, left + width, y + up * scale + height / 2


def _covers(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
