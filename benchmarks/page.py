"""A page whose tables are drawn from the runs that lie beside it: docs/benchmarks.md.

    python -m edgellm.benchmarks.page [docs/benchmarks.md]

What stands in the page between two such comments is drawn anew, its headings one level deeper than in a run's own tables:

    <!-- run: benchmarks.frontier.json frontier -->
    <!-- end -->

and a picture is drawn into a file beside the page where one says so:

    <!-- picture: benchmarks.frontier.json frontier.svg -->
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from edgellm.benchmarks import pairs, report, script
from edgellm.benchmarks.frontier import plot
from edgellm.benchmarks.frontier import table as frontier
from edgellm.benchmarks.peers import table as peers
from edgellm.benchmarks.result import Run, read
from edgellm.errors import ResourceError, UsageError

PAGE = Path("docs/benchmarks.md")
MAIN = ("headline", "ratios", "limit", "first-token", "machine")  # sections of a report


def _report(run: Run) -> str:
    """Without the title, which the page has."""
    return report.to_markdown([run], MAIN).partition("\n")[2]


RUNS = {"peers": peers.markdown, "frontier": frontier.markdown, "lead": frontier.lead, "report": _report}
FOLDERS = {"pairs": pairs.markdown}  # of runs
BEGIN, END = "<!-- run: ", "<!-- end -->"
REGION = re.compile(rf"^{BEGIN}(\S+) (\S+) -->$(.*?)^{END}$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"^<!-- picture: (\S+) (\S+) -->$", re.MULTILINE)
HEADING = re.compile(r"^#", re.MULTILINE)


def drawn(text: str, folder: Path) -> str:
    """A page's text with its tables as the runs in `folder` have them.

    Raises:
        UsageError: no such run or table, or a comment without its end.
    """
    starts = sum(line.startswith(BEGIN) for line in text.splitlines())
    regions = list(REGION.finditer(text))
    if starts != len(regions) or any(BEGIN in region[3] for region in regions):
        raise UsageError(f"{starts} tables begin and not all of them end", fix=f"put {END} behind each")
    return REGION.sub(lambda region: _region(region[1], region[2], folder), text)


def _region(file: str, kind: str, folder: Path) -> str:
    if kind not in {**RUNS, **FOLDERS}:
        raise UsageError(f"no table is called '{kind}'", where=file, fix=f"choose from {', '.join([*RUNS, *FOLDERS])}")
    made = RUNS[kind](read(folder / file)) if kind in RUNS else FOLDERS[kind](folder / file)
    body = HEADING.sub("##", made).strip()
    return f"{BEGIN}{file} {kind} -->\n\n{body}\n\n{END}"


@script.ends
def main() -> None:
    """Draw a page's tables and pictures."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.benchmarks.page", description="Draw a page from its runs.")
    parser.add_argument("page", nargs="?", type=Path, default=PAGE)
    page: Path = parser.parse_args().page
    try:
        text = page.read_text(encoding="utf-8")
        page.write_text(drawn(text, page.parent), encoding="utf-8")
    except OSError as error:
        raise ResourceError(error.strerror or str(error), where=page, fix="choose another page") from error
    for file, picture in PICTURE.findall(text):
        plot.draw(read(page.parent / file), page.parent / picture)


if __name__ == "__main__":
    sys.exit(main())
