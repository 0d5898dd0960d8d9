"""The page: one file that asks nobody for anything, that a screen reader can read, and that no name in a run can break."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from edgellm.benchmarks.report import check, to_html, to_markdown, write
from edgellm.benchmarks.report.contents import document
from edgellm.benchmarks.report.html import wide
from edgellm.benchmarks.result import Run
from edgellm.errors import ResourceError, RuntimeUnavailable, UsageError
from tests.benchmarks.report.pages import Page, read
from tests.runs import a_lane, a_run

ROOT = Path(__file__).parents[3]
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' style='background:url(//example.org)",
    "</title></style></svg><b>",
    "&lt;i&gt; {{ 7*7 }} {% raw %} $\\alpha$ ]]>",
)


def full(**names: str) -> Run:
    """A run that has everything, with names of our choice."""
    name, other = names.get("name", "smollm2"), names.get("other", "qwen2")
    lanes = [
        a_lane(model=name, id=f"{name} 1", source=name, variant=name, versions={name: name}, digest=name),
        a_lane(model=name, id=f"{name} 2", runtime="tflite", doubts=(other,), versions={name: other}),
        a_lane(model=other, id=f"{other} 3", engine=other, failed=name),
    ]
    run = a_run(lanes, trials=2, sustained=5.0)
    machine = dataclasses.replace(run.machine, cpu=name, system=name, python=name, features=(name,), architecture=name)
    moments = tuple(
        dataclasses.replace(each, governor=name, busiest=name, others=0.5, throttled=(name,)) for each in run.moments
    )
    return dataclasses.replace(
        run, machine=machine, moments=moments, command=name, doubts=(other,), notes=(name,), energy=name, version=name
    )  # fmt: skip


SMALL = a_run([a_lane()], trials=1, prompts=(128,), depths=(0,), chain=False, energy=None)


@pytest.fixture(scope="module")
def page() -> Page:
    return read(to_html([full(), SMALL]))


def test_it_asks_nobody_for_anything(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "image", "base", "form"} & {tag for tag, _ in page.elements}
    links = [value for _, each in page.elements for key, value in each.items() if key in ("href", "src", "xlink:href")]
    assert links
    assert all((value or "").startswith("#") for value in links)
    text = to_html([full()])
    assert re.findall(r"(?i)@import|https?://|url\((?!#plot)", text) == []


def test_whatever_is_referred_to_is_there_once(page: Page) -> None:
    ids = Counter(each["id"] for _, each in page.elements if "id" in each)
    assert [name for name, count in ids.items() if count > 1] == []
    wanted = {(each["href"] or "")[1:] for _, each in page.elements if "href" in each}
    wanted |= {name for _, each in page.elements for name in (each.get("aria-labelledby") or "").split()}
    painted = [value or "" for _, each in page.elements for value in each.values()]
    wanted |= {name for value in painted for name in re.findall(r"url\(#([^)]+)\)", value)}
    assert wanted <= ids.keys()


def test_a_screen_reader_is_told_what_everything_is(page: Page) -> None:
    assert page.of("html") == [{"lang": "en"}]
    assert all(each.get("scope") in ("col", "row", "rowgroup") for each in page.of("th"))
    plots = [each for each in page.of("svg") if each.get("role") == "img"]
    assert len(plots) == len(list(document([full(), SMALL]).charts()))
    assert all(len((each["aria-labelledby"] or "").split()) == 2 for each in plots)
    assert all(each.get("aria-hidden") == "true" for each in page.of("svg") if each.get("role") != "img")
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_every_plot_says_its_figures_in_words() -> None:
    for chart in document([full()]).charts():
        assert chart.title
        assert re.search(r"\d", chart.about) or chart.title == "Temperature and clock", chart.title


def test_no_name_becomes_an_element_or_an_attribute(page: Page) -> None:
    name, other = " ".join(HOSTILE), " ".join(HOSTILE[::-1])
    hostile = read(to_html([full(name=name, other=other)]))
    known, found = ({(tag, key) for tag, each in some.elements for key in each} for some in (page, hostile))
    assert found <= known
    assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in page.elements}
    assert {name, other} <= set(hostile.texts)


def test_no_name_turns_the_text_around_it() -> None:
    text = to_html([full(name="a\u202eb\u2066c\x07d\ud800")])
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x07\ud800-\udfff]", text)
    assert "a\\u202eb\\u2066c\\x07d\\ud800" in text


@pytest.mark.slow
def test_the_same_runs_make_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgellm.benchmarks.report import write\n"
        "from tests.runs import a_lane, a_run\n"
        "write([a_run([a_lane(), a_lane(runtime='tflite')], trials=2)], Path(sys.argv[1]))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / f"{seed}.html")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


def test_without_matplotlib_it_says_what_to_install_and_markdown_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = a_run(trials=1)
    with pytest.raises(RuntimeUnavailable, match=r"matplotlib.*; pip install 'edgellm\[report\]', or write Markdown$"):
        check(tmp_path / "it.html")
    with pytest.raises(RuntimeUnavailable):
        to_html([run])
    write([run], tmp_path / "it.md")
    assert (tmp_path / "it.md").read_text(encoding="utf-8") == to_markdown([run])


def test_a_target_that_cannot_be_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown kind of report; let the name end in .html or .md"):
        check(tmp_path / "it.pdf")
    with pytest.raises(ResourceError, match="its folder does not exist"):
        check(tmp_path / "nowhere" / "it.html")
    (tmp_path / "is.md").mkdir()
    with pytest.raises(ResourceError, match="is a folder"):
        check(tmp_path / "is.md")


def test_no_column_of_the_page_stays_half_empty_where_that_can_be() -> None:
    sections = {each.id: each for each in document([a_run([a_lane(), a_lane(runtime="tflite")], trials=2)]).sections}
    for name in ("decode", "prefill", "quality", "limit", "latency", "chain"):
        assert wide(sections[name]).count(False) % 2 == 0, name
