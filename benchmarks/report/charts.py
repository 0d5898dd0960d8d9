"""Plots as data: what is drawn, with every point, and no word of how. `draw.py` draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["higher", "lower", ""]  # which way is better


@dataclass(frozen=True)
class Point:
    """A value at x, with how far it spread."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """Points of one lane; `look` gives it the colour, symbol and stroke that it has in all plots."""

    label: str
    look: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Lines:
    """Lines over one axis.

    Attributes:
        names: the axis has names, x counts them; () for numbers.
        joined: False for a cloud of points, each with its label beside it.
        log: of x.
        zero: y begins at 0.
        shaded: x up to which all is set apart, and what to call that.
        symbols: a symbol at each point; without, a line of hundreds stays a line.
    """

    x: str
    y: str
    lines: tuple[Line, ...]
    names: tuple[str, ...] = ()
    joined: bool = True
    log: bool = False
    zero: bool = True
    shaded: tuple[float, str] | None = None
    symbols: bool = True


@dataclass(frozen=True)
class Bar:
    """A bar of one or more parts.

    Attributes:
        parts: (name, value), stacked; a single part has the lane's colour, several have one of their own each.
        low, high: of the whole, or None.
    """

    label: str
    look: int
    parts: tuple[tuple[str, float], ...]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bars:
    """Bars that lie.

    Attributes:
        unit: behind the number at a bar's end.
        limit: a line that is drawn through all of them, and its name.
    """

    x: str
    bars: tuple[Bar, ...]
    unit: str = ""
    percent: bool = False
    limit: tuple[float, str] | None = None


@dataclass(frozen=True)
class Mark:
    """A point in a row; `sign` numbers its symbol: 0 circle, 1 square, 2 diamond, 3 triangle."""

    x: float
    low: float | None = None
    high: float | None = None
    sign: int = 0


@dataclass(frozen=True)
class Marks:
    """Rows with points on one axis.

    Attributes:
        rows: (label, look, marks).
        signs: what the symbols mean; () where there is one.
        middle: a line that everything is compared with.
        log: of x.
    """

    x: str
    rows: tuple[tuple[str, int, tuple[Mark, ...]], ...]
    signs: tuple[str, ...] = ()
    middle: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Hills:
    """How often what was measured, a hill for each lane, with lines at some of its values.

    Attributes:
        rows: (label, look, edges, counts, lines): `edges` has one more than `counts`; lines are (name, value).
    """

    x: str
    rows: tuple[tuple[str, int, tuple[float, ...], tuple[int, ...], tuple[tuple[str, float], ...]], ...]


Drawing = Lines | Bars | Marks | Hills


@dataclass(frozen=True)
class Chart:
    """A plot.

    Attributes:
        title: what it shows.
        about: the same in words for those who cannot see it, with its main figures.
        panels: one, or several above each other with one x axis.
        better: which way is better, said in the caption.
    """

    title: str
    about: str
    panels: tuple[Drawing, ...]
    better: Side = ""
