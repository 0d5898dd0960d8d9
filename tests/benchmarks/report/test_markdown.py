"""Markdown has the tables that the page has, and takes no name for markup."""

from __future__ import annotations

from typing import Any

from edgellm.benchmarks.report import to_html, to_markdown
from tests.benchmarks.report.pages import markdown_tables, read
from tests.runs import a_lane, a_run

LANES = [
    a_lane(),
    a_lane(runtime="tflite", doubts=("busy",)),
    a_lane(engine="llama.cpp", failed="no | kernel"),
]


def test_tables_are_those_of_the_page() -> None:
    few: dict[str, Any] = {"trials": 3, "prompts": (128,), "depths": (0,)}
    runs = [a_run(LANES, **few), a_run(LANES[:2], **few, chain=False, seed=1)]
    page, text = read(to_html(runs)).tables, markdown_tables(to_markdown(runs))
    assert len(page) == len(text) > 10
    for theirs, ours in zip(page, text, strict=True):
        assert [[cell.strip() for cell in row] for row in theirs] == [
            [cell for cell in row if cell] for row in ours[:1] + ours[2:]
        ]


def test_every_row_has_as_many_cells_as_the_head() -> None:
    for table in markdown_tables(to_markdown([a_run(LANES, trials=2)])):
        assert {len(row) for row in table} == {len(table[0])}


def test_names_are_no_markup() -> None:
    name = "a|b <script>x</script> [y](javascript:z) *w* `v` _u_ # t"
    text = to_markdown([a_run([a_lane(model=name)], trials=1)])
    heading = text.splitlines()[0]
    escaped = r"a\|b \<script\>x\</script\> \[y\](javascript:z) \*w\* \`v\` \_u\_ \# t"
    assert heading == f"# {escaped}"
    assert "<script>" not in text.replace("\\<", "")


def test_a_command_with_fences_stays_in_its_own() -> None:
    import dataclasses

    run = dataclasses.replace(a_run(trials=1), command="edgellm bench ```x``` ````")
    assert "\n`````text\nedgellm bench ```x``` ````\n`````\n" in to_markdown([run])
