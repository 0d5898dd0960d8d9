"""A report of runs: one HTML file that opens anywhere, or Markdown. Everything in it comes out of `result.Run`.

write([read("phone.json"), read("board.json")], Path("report.html"))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edgellm.benchmarks.report.contents import document
from edgellm.benchmarks.result import Run
from edgellm.benchmarks.whole import whole
from edgellm.errors import ResourceError, UsageError

HTML, MARKDOWN = (".html", ".htm"), (".md", ".markdown")


def check(path: Path) -> None:
    """Whether a report can be written there, before anything is measured for it.

    Raises:
        UsageError: its name ends like no kind of report.
        RuntimeUnavailable: HTML, and matplotlib is missing.
        ResourceError: it is a folder, or lies in none.
    """
    if path.suffix.lower() not in HTML + MARKDOWN:
        raise UsageError("unknown kind of report", where=path, fix="let the name end in .html or .md")
    if path.is_dir() or not path.parent.is_dir():
        reason = "is a folder" if path.is_dir() else "its folder does not exist"
        raise ResourceError(f"cannot write: {reason}", where=path, fix="choose another file")
    if path.suffix.lower() in HTML:
        from edgellm.benchmarks.report import draw

        draw.check()


def write(runs: Sequence[Run], path: Path) -> None:
    """Write a report of one run, or of several side by side; the file appears whole or not at all.

    Raises:
        UsageError, RuntimeUnavailable, ResourceError: as `check` does, and where the disk refuses.
    """
    check(path)
    text = to_html(runs) if path.suffix.lower() in HTML else to_markdown(runs)
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def to_html(runs: Sequence[Run]) -> str:
    """One page, its plots inside. Raises RuntimeUnavailable where matplotlib is missing."""
    from edgellm.benchmarks.report.html import html

    return html(document(runs))


def to_markdown(runs: Sequence[Run], sections: Sequence[str] = ()) -> str:
    """Its tables; of these sections alone, by their ids ("headline", "limit"), with what they are of."""
    from edgellm.benchmarks.report.markdown import markdown

    whole = document(runs)
    some = tuple(section for section in whole.sections if not sections or section.id in sections)
    return markdown(dataclasses.replace(whole, sections=some))
