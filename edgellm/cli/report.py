"""`edgellm report`: a page, or Markdown, of runs that `edgellm bench --json` wrote."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Draw a report of benchmark runs.")
@click.argument("runs", metavar="RUN.json...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="F",
    help="report.html: one page that needs no network, plots inside. report.md: its tables.",
)
def command(runs: tuple[Path, ...], output: Path) -> None:
    """Draw a report of RUN.json, which `edgellm bench --json` wrote; several stand side by side, a column each."""
    from edgellm.benchmarks import report
    from edgellm.benchmarks.result import read

    report.check(output)
    report.write([read(path) for path in runs], output)
    click.echo(f"wrote {output}")
