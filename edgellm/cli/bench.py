"""`edgellm bench`: what a bundle does on this machine."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli._options import check_target, readable, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from edgellm.benchmarks.harness import Report


@click.command(short_help="Measure a bundle on this machine.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--trials", type=click.IntRange(min=1), default=5, show_default=True, help="Measured runs of each case.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads; the default suits the machine.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="F", help="Write every figure to F, '-' for stdout."
)
def command(bundle: Path, trials: int, threads: int | None, json_file: Path | None) -> None:
    """Measure BUNDLE: prefill and decode speed, time to first token, load time, memory."""
    from rich.console import Console

    from edgellm.benchmarks.harness import Settings, measure
    from edgellm.cli._options import to_json

    if json_file is not None and json_file != Path("-"):
        check_target(json_file)
    progress = Console(stderr=True)
    with progress.status("measuring") as status:
        report = measure(
            bundle, Settings(trials=trials), threads=threads, progress=lambda case: status.update(f"measuring {case}")
        )
    if json_file == Path("-"):
        click.echo(to_json(report.to_json()))
        return
    if json_file is not None:
        write_json(json_file, report.to_json())
    click.echo(f"{report.bundle}: {report.source}, {report.recipe}")
    Console().print(_table(report))
    for note in report.notes:
        click.echo(note)
    machine = report.machine
    package = importlib.import_module(f"edgellm.runtimes.{report.runtime}").PACKAGE
    click.echo(f"{machine.cpu}, {report.threads} threads, {package} {report.versions[package]}")


def _table(report: Report) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("measure")
    table.add_column("median", justify="right")
    table.add_column("lowest to highest", justify="right")
    for series in report.series:
        ends = f"{min(series.values):,.1f} to {max(series.values):,.1f}" if len(series.values) > 1 else ""
        table.add_row(series.name, f"{series.median:,.1f} {series.unit}", ends)
    if report.peak_rss is not None:
        table.add_row("peak RSS", readable(report.peak_rss), "")
    return table
