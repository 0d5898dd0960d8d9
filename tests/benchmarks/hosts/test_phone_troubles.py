"""A browser whose tab vanishes, whose page is not in front, whose network stumbles, or that keeps no files: in a real one."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from edgellm.benchmarks.figures import figures
from edgellm.benchmarks.result import Settings
from edgellm.bundle import Bundle
from tests.benchmarks.hosts.phones import SMALL, Benching, begun

ONE = Settings(threads=(1,), prompts=(8,), depths=(0,), decode=2, trials=1)
HIDE = """hidden => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.mark.slow
def test_a_browser_that_has_no_room_for_files_is_measured_and_says_so(
    launch: Callable[..., Any], both: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    benching = Benching(both, ("onnx",), ONE, "phone://127.0.0.1:0")
    page = launch().new_page()
    url = benching.url(capsys)
    page.context.new_cdp_session(page).send(
        "Storage.overrideQuotaForOrigin", {"origin": "/".join(url.split("/")[:3]), "quotaSize": 1000}
    )
    run = benching.run(begun(page, url))
    (lane,) = run.lanes
    assert lane.failed is None
    note = f"{lane.id}: load leaves out to read its files: this browser could not keep them"
    assert [each for each in run.notes if "could not keep" in each] == [note]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["left", "crashed"])
def test_a_tab_that_vanishes_is_a_failed_lane(
    launch: Callable[..., Any], both: Bundle, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    """The lane that it was at; another one, which has whole rounds, keeps them."""
    benching = Benching(
        both, ("onnx",), dataclasses.replace(SMALL, threads=(1, 2), trials=500), "phone://127.0.0.1:0", silence="4"
    )
    page = begun(launch().new_page(), benching.url(capsys))
    while not any("round 2" in each for each in benching.steps):
        page.wait_for_timeout(50)
    if way == "left":
        page.goto("about:blank")
        wanted = "the page was closed or left; keep it open"
    else:  # as one ends that takes too much memory: without a word
        with contextlib.suppress(Exception):
            page.goto("chrome://crash", timeout=1000)
        wanted = "the page has said nothing for 4 seconds: its tab was closed, put to sleep, or ended for want of memory"
    run = benching.run()
    (gone,) = [each for each in run.lanes if each.failed is not None]
    (other,) = [each for each in run.lanes if each.failed is None]
    assert wanted in str(gone.failed)
    assert any(re.match(rf"\d+ of 500 rounds: {wanted[:20]}", doubt) for doubt in other.doubts)
    assert {each.lane for each in figures(run)} == {other.id}
    assert {each.round for each in run.samples} >= {0, 1}


@pytest.mark.slow
def test_a_second_page_and_a_wrong_token_get_nothing(
    launch: Callable[..., Any], both: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    benching = Benching(both, ("onnx",), dataclasses.replace(SMALL, trials=500), "phone://127.0.0.1:0", silence="4")
    browser = launch()
    url = benching.url(capsys)
    first, second = browser.new_page(), browser.new_page()
    assert second.goto(re.sub(r"[^/]+/$", "x" * 32 + "/", url)).status == 404
    begun(first, url)
    first.wait_for_timeout(500)
    begun(second, url, "another one")
    second.get_by_text("another page has this run").wait_for(timeout=10_000)
    first.close()
    assert benching.run().host == "a kitchen phone"


@pytest.mark.slow
def test_what_a_page_measures_while_it_is_not_in_front_does_not_count(
    launch: Callable[..., Any], both: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    benching = Benching(both, ("onnx",), dataclasses.replace(ONE, trials=12), "phone://127.0.0.1:0")
    page = begun(launch().new_page(), benching.url(capsys))
    benching.wait_for("round 1 of 12", page)
    page.evaluate(HIDE, True)
    benching.wait_for("does not count, the page was not in front", page)
    page.evaluate(HIDE, False)
    benching.wait_for("round 3 of 12", page)
    counted = sum("does not count," in each for each in benching.steps)
    page.evaluate("() => { const now = Date.now; Date.now = () => now() + 60_000; }")  # the device slept, and no page was told
    while sum("does not count," in each for each in benching.steps) == counted:
        benching.wait_for("round 3 of 12", page)
        page.wait_for_timeout(10)
    run = benching.run(page)
    (lane,) = run.lanes
    assert lane.failed is None
    (note,) = [each for each in run.notes if "left out" in each]
    found = re.fullmatch(rf"{lane.id}: samples left out, because the page was not in front: (\d+)", note)
    assert found is not None
    rounds = Counter(each.round for each in run.samples)
    assert int(found[1]) + rounds.total() == 13 * rounds[12]
    assert any("the page is not in front: what it measures does not count" in each for each in benching.steps)


@pytest.mark.slow
def test_a_page_that_never_is_in_front_has_no_result(
    launch: Callable[..., Any], both: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    benching = Benching(both, ("onnx",), ONE, "phone://127.0.0.1:0")
    page = launch().new_page()
    page.goto(benching.url(capsys))
    page.evaluate(HIDE, True)
    run = benching.run(begun(page, page.url, go=False))
    assert [lane.failed for lane in run.lanes] == ["not measured: the page was not in front"]
    assert run.samples == ()


@pytest.mark.slow
def test_lost_answers_cost_nothing(launch: Callable[..., Any], both: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """The first hello is heard and its answer is lost, and so it is with a word of each kind: the page says them again."""
    benching = Benching(both, ("onnx",), ONE, "phone://127.0.0.1:0")
    page = launch().new_page()
    lost: list[str] = []

    def lose(route: Any) -> None:
        asked = route.request.post_data_json
        what = asked["said"]["kind"] if "said" in asked else "hello"
        if what in lost:
            return route.continue_()
        lost.append(what)
        route.fetch()
        return route.abort()

    page.route("**/hello", lose)
    page.route("**/say", lose)
    run = benching.run(begun(page, benching.url(capsys)))
    assert {*lost} >= {"hello", "progress", "rows", "loaded", "sample", "finished"}
    (lane,) = run.lanes
    assert (lane.failed, lane.agreement) == (None, 1.0)
    assert {*Counter((each.case, each.round) for each in run.samples).values()} == {1}


@pytest.mark.slow
def test_a_page_that_breaks_says_why(launch: Callable[..., Any], both: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """At once, and not by falling silent."""
    benching = Benching(both, ("onnx",), ONE, "phone://127.0.0.1:0", silence="600")
    page = launch().new_page()
    page.route("**/say", lambda route: route.fulfill(status=418, json={"error": "no more"}))
    run = benching.run(begun(page, benching.url(capsys)))
    assert [str(lane.failed) for lane in run.lanes] == [
        "the page stopped: no more; keep it open, and in front, until it says that it is done"
    ]
