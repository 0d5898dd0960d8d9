"""Plots: everything that a chart has is drawn, can be told apart without colour, and takes its colours from the page."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from edgellm.benchmarks.report.charts import Bar, Bars, Chart, Drawing, Hills, Line, Lines, Mark, Marks, Point
from edgellm.benchmarks.report.draw import HATCHES, STROKES, SYMBOLS, draw, symbol

LINES = tuple(Line(f"lane {number}", number, (Point(1, 10 + number, 9, 12), Point(4, 5))) for number in range(8))
PANELS: dict[str, Drawing] = {
    "lines": Lines("x", "speed", LINES, shaded=(1.5, "warm-up")),
    "named": Lines("x", "speed", LINES[:2], names=("load", "a", "b", "c", "decode")),
    "log": Lines("x", "speed", LINES[:2], log=True),
    "cloud": Lines("x", "speed", LINES, joined=False, log=True),
    "nothing": Lines("x", "speed", ()),
    "bars": Bars("x", tuple(Bar(f"lane {number}", number, (("", number),), 0.5, number + 1) for number in range(8)), "ms"),
    "parts": Bars("x", (Bar("lane", 0, tuple((f"part {number}", 1.0) for number in range(8))),)),
    "share": Bars("x", (Bar("lane", 0, (("", 0.97),)),), percent=True, limit=(1.0, "all of it")),
    "marks": Marks("x", (("lane", 0, (Mark(1.0, 0.9, 1.2), Mark(2.0, sign=1))),), ("cold", "warm"), middle=1.0),
    "hills": Hills("x", (("lane", 0, (0.0, 1.0, 2.0), (3, 1), (("p50", 0.5), ("p95", 1.5), ("p99", 1.9))),)),
}


def drawn(panel: Drawing, *more: Drawing, name: str = "plot1") -> ET.Element:
    return ET.fromstring(draw(Chart("a title", "some words", (panel, *more)), name))  # noqa: S314


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter("text")]


def styles(root: ET.Element) -> list[str]:
    return [value for element in root.iter() for value in element.attrib.values()]


@pytest.mark.parametrize("kind", PANELS)
def test_a_plot_has_no_colour_and_no_style_of_its_own(kind: str) -> None:
    root = drawn(PANELS[kind])
    assert not list(root.iter("style"))
    assert re.findall(r"#[0-9a-fA-F]{6}\b", " ".join(value for value in styles(root) if "url(" not in value)) == []
    assert all("fill:" in element.attrib["style"] for element in root.iter("text"))
    assert not any("font-family" in value or "DejaVu" in value for value in styles(root))


@pytest.mark.parametrize("kind", PANELS)
def test_the_same_chart_gives_the_same_bytes(kind: str) -> None:
    chart = Chart("a title", "words", (PANELS[kind],))
    assert draw(chart, "plot1") == draw(chart, "plot1")


def test_words_for_those_who_cannot_see_it() -> None:
    root = drawn(PANELS["lines"])
    assert root.attrib["role"] == "img"
    named = {element.attrib["id"]: element.text for element in root[:2]}
    assert [named[name] for name in root.attrib["aria-labelledby"].split()] == ["a title", "some words"]


def test_ids_are_of_the_plot_alone() -> None:
    one, two = (drawn(PANELS["lines"], name=name) for name in ("plot1", "plot2"))
    ids = [{element.attrib["id"] for element in root.iter() if "id" in element.attrib} for root in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_lanes_are_told_apart_without_colour() -> None:
    assert len({symbol(look) for look in range(8)}) == 8
    assert len({(symbol(look), look % len(STROKES)) for look in range(32)}) == 32
    assert set(SYMBOLS) == {symbol(look) for look in range(8, 16)}
    assert len(set(HATCHES)) == 8


def test_parts_of_a_bar_have_hatches() -> None:
    root = drawn(PANELS["parts"])
    assert len(list(root.iter("pattern"))) >= 7


@pytest.mark.parametrize("kind", ["lines", "cloud", "bars"])
def test_every_lane_is_named_in_the_plot(kind: str) -> None:
    assert {f"lane {number}" for number in range(8)} <= set(texts(drawn(PANELS[kind])))


def test_names_at_lines_do_not_cover_each_other() -> None:
    lines = tuple(Line(f"lane {number}", number, (Point(1, 10), Point(2, 10 + number / 100))) for number in range(8))
    root = drawn(Lines("x", "y", lines))
    heights = sorted(float(element.attrib["y"]) for element in root.iter("text") if (element.text or "").startswith("lane"))
    assert min(b - a for a, b in zip(heights, heights[1:], strict=False)) > 9


def test_every_point_has_its_symbol() -> None:
    one, more = (
        drawn(Lines("x", "y", (Line("lane", 0, tuple(Point(x, x) for x in range(count))),))) for count in (2, 6)
    )  # fmt: skip
    assert len(list(more.iter("use"))) - len(list(one.iter("use"))) == 4


def test_the_histogram_says_which_line_is_which() -> None:
    assert {"p50", "p95", "p99", "lane"} <= set(texts(drawn(PANELS["hills"])))


def test_numbers_stand_at_bars() -> None:
    assert "7.00 ms" in texts(drawn(PANELS["bars"]))
    assert {"97 %", "all of it"} <= set(texts(drawn(PANELS["share"])))


def test_panels_share_one_axis() -> None:
    root = drawn(PANELS["lines"], PANELS["log"])
    assert texts(root).count("x") == 1


def test_a_dollar_is_no_formula_and_an_unknown_sign_no_warning() -> None:
    name = "$\\frac{x}$ 模型 🦙 مرحبا"
    root = drawn(Bars("x", (Bar(name, 0, (("", 1.0),)),)))
    assert name in texts(root)


def test_a_long_name_keeps_both_its_ends() -> None:
    (name,) = [text for text in texts(drawn(Bars("x", (Bar("a" * 50 + "b" * 50, 0, (("", 1.0),)),)))) if "…" in text]
    assert len(name) <= 30
    assert (name[0], name[-1]) == ("a", "b")
