"""Pages that are drawn from runs, docs/benchmarks.md among them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from edgellm.benchmarks import page, result
from tests.frontier_run import made
from tests.peers import ROOT
from tests.runs import a_lane, a_run

DOCS = ROOT / "docs"
TEXT = """# A page

## Speed

<!-- run: it.json {kind} -->
old | figures
<!-- end -->

What follows stays, # too.
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    result.write(made(), tmp_path / "it.json")
    return tmp_path


@pytest.mark.parametrize(("kind", "line"), [("peers", "| engine |"), ("frontier", "| file |"), ("lead", "| edgellm | KL |")])
def test_what_stands_between_the_comments_is_drawn_anew(kind: str, line: str, folder: Path) -> None:
    text = page.drawn(TEXT.format(kind=kind), folder)
    assert "old | figures" not in text
    assert f"\n{line}" in text
    assert text.startswith("# A page\n\n## Speed\n\n<!-- run: it.json")
    assert text.endswith("\n\n<!-- end -->\n\nWhat follows stays, # too.\n")
    headings = re.findall("^#.*", text, re.MULTILINE)
    assert headings[2:] == ([] if kind == "lead" else ["### tiny (tiny.gguf), 1 thread", "### tiny (tiny.gguf), 2 threads"])
    assert page.drawn(text, folder) == text


def test_a_report_s_main_tables_stand_below_the_page_s_heading(folder: Path) -> None:
    result.write(a_run([a_lane(), a_lane(runtime="tflite")]), folder / "it.json")
    text = page.drawn(TEXT.format(kind="report"), folder)
    headings = re.findall("^#.*", text, re.MULTILINE)
    assert headings[2:4] == ["### Main figures", "### Which lanes differ"]
    assert "### Share of the limit" in headings
    assert "`edgellm bench smollm2-int4 --json run.json`" in text or "edgellm bench smollm2-int4 --json run.json" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.format(kind="cake"), "it.json: no table is called 'cake'; choose from peers, frontier, lead, report, pairs"),
        (TEXT.replace("<!-- end -->", "").format(kind="lead"), "1 tables begin and not all of them end"),
        (TEXT.replace("<!-- end -->", "").format(kind="lead") + TEXT.format(kind="lead"), "2 tables begin"),
        (TEXT.replace("it.json", "no.json").format(kind="lead"), "no.json: cannot be read"),
    ],
)
def test_a_page_that_cannot_be_drawn_is_left_as_it_is(
    text: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "page.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["page", str(folder / "page.md")])
    assert page.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert (folder / "page.md").read_text(encoding="utf-8") == text


def test_pictures_are_drawn_beside_the_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "page.md").write_text("<!-- picture: it.json it.svg -->\n![it](it.svg)\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["page", str(folder / "page.md")])
    assert page.main() == 0
    assert ">q4_k_m-imatrix<" in (folder / "it.svg").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["page", str(folder / "nowhere.md")])
    assert page.main() == 1
    assert "nowhere.md: No such file or directory; choose another page" in capsys.readouterr().err


def test_the_pages_figures_are_those_of_the_runs_beside_it() -> None:
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    files = {file for file, _, _ in page.REGION.findall(text)}
    assert files == {
        f"benchmarks.{name}" for name in ("json", "tflite.json", "frontier.json", "smollm2.json", "shapes.json", "pairs")
    }
    assert page.drawn(text, DOCS) == text, "call python -m edgellm.benchmarks.page"


def test_the_pages_picture_names_the_files_of_its_run() -> None:
    """The bytes depend on the release of matplotlib."""
    ((file, picture),) = page.PICTURE.findall((DOCS / "benchmarks.md").read_text(encoding="utf-8"))
    shown = set(re.findall(r">([^<>]+)</text>", (DOCS / picture).read_text(encoding="utf-8")))
    run = result.read(DOCS / file)
    assert {lane.variant for lane in run.lanes if lane.engine == "edgellm" and lane.quality} <= shown
