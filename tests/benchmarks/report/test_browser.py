"""The page in a real browser: on a phone and on a desk, in the light and in the dark.

Wanted: chromium-headless-shell (Debian's package of that name) or chromium, and playwright. Without a browser these tests skip.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm.benchmarks.report import write
from edgellm.benchmarks.result import Quality
from tests.runs import a_lane, a_run

pytestmark = pytest.mark.slow
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SIZES = {"phone": (360, 800), "desk": (1280, 900)}
LEAST = 4.5  # of contrast, WCAG AA

# For each text on the page: the contrast of its colour with what is painted behind it, and how it begins.
CONTRASTS = """() => {
  const rgba = text => (text.match(/[0-9.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const part = [r, g, b].map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * part[0] + .7152 * part[1] + .0722 * part[2];
  };
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const color = rgba(getComputedStyle(each).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    throw new Error('nothing is painted behind');
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || ['STYLE', 'title', 'desc'].includes(element.tagName)) continue;
    const inPlot = element.closest('svg') !== null;
    const style = getComputedStyle(element);
    const a = light(rgba(inPlot ? style.fill : style.color)), b = light(behind(element));
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), inPlot, text.slice(0, 40)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two devices, with all that can go wrong: doubts, a lane that failed, names that are too long for anything."""
    lanes = [
        a_lane(threads=1),
        a_lane(threads=2),
        a_lane(runtime="tflite", threads=2, quality=Quality("ab" * 32, 0.02, 0.001, 0.9), doubts=("the machine was busy",)),
        a_lane(model="x" * 120, variant="<b>" + "y" * 80, threads=2, doubts=("w" * 300,)),
        a_lane(model="a model of שלום 🦙", engine="llama.cpp", threads=2, failed="z" * 300),
    ]
    run = a_run(lanes, trials=3, sustained=30.0)
    machine = dataclasses.replace(run.machine, cpu="Processor" * 12)
    run = dataclasses.replace(run, machine=machine, doubts=("d" * 300,), command="edgellm bench " + "p" * 300)
    path = tmp_path_factory.mktemp("report") / "report.html"
    write([run, a_run(lanes[:3], trials=3, energy=None, seed=1)], path)
    return path


@pytest.fixture(scope="module", params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids="-".join)
def opened(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Any, list[str], list[str]]]:
    """The page, what its console said, and what it asked for."""
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda wanted: asked.append(wanted.url))
    page.goto(report.as_uri())
    page.wait_for_load_state("networkidle")
    yield page, said, asked
    context.close()


Opened = tuple[Any, list[str], list[str]]


def test_it_asks_for_nothing_but_itself_and_has_no_errors(opened: Opened, report: Path) -> None:
    page, said, asked = opened
    assert asked == [report.as_uri()]
    assert said == []
    assert page.title().endswith("edgellm benchmark")


def test_nothing_is_wider_than_the_page(opened: Opened) -> None:
    page = opened[0]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("document.body.scrollWidth <= window.innerWidth")
    outside = page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(each => !each.closest('.scroll') && !each.closest('svg')
             && each.getBoundingClientRect().right > window.innerWidth + .5).map(each => each.tagName)"""
    )
    assert outside == []


def test_every_plot_is_there_and_stays_in_its_place(opened: Opened) -> None:
    page = opened[0]
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('.plot svg')].map(each => { const box = each.getBoundingClientRect();
             return [box.width, box.height, getComputedStyle(each).visibility, each.querySelectorAll('path').length]; })"""
    )
    assert len(boxes) > 20
    assert all(width > 250 and height > 80 and seen == "visible" and paths > 3 for width, height, seen, paths in boxes)


def test_words_in_plots_stay_inside_and_are_large_enough(opened: Opened) -> None:
    page = opened[0]
    found = page.evaluate(
        """() => [...document.querySelectorAll('.plot svg text')].map(each => { const box = each.getBoundingClientRect();
             const plot = each.closest('svg').getBoundingClientRect();
             return [each.textContent, box.left - plot.left, plot.right - box.right, box.height]; })"""
    )
    assert [text for text, left, right, _ in found if left < -12 or right < -12] == []
    assert min(height for *_, height in found) >= 9


def test_text_stands_out_from_what_is_behind_it(opened: Opened) -> None:
    found = opened[0].evaluate(CONTRASTS)
    assert sum(in_plot for _, in_plot, _ in found) > 100
    assert sum(not in_plot for _, in_plot, _ in found) > 100
    assert [(round(contrast, 2), text) for contrast, _, text in found if contrast < LEAST] == []


def test_light_and_dark_are_two(browser: Any, report: Path) -> None:
    colors = []
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(report.as_uri())
        colors.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert len(set(colors)) == 2


def test_tables_scroll_inside_their_own_box_and_the_keyboard_reaches_them(opened: Opened) -> None:
    page = opened[0]
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('.scroll')].map(each =>
             [each.scrollWidth > each.clientWidth + 1, each.tabIndex, each.getBoundingClientRect().right <= window.innerWidth])"""
    )
    assert all(index == 0 and inside for _, index, inside in boxes)
    if page.viewport_size["width"] == SIZES["phone"][0]:
        assert any(scrolls for scrolls, _, _ in boxes)


def test_in_print_no_table_is_cut(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": 794, "height": 1123})
    page.goto(report.as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(each => getComputedStyle(each).overflowX === 'visible')"
    )
    page.close()
