"""`edgellm bench`: what a bundle does on this machine, in each of its runtimes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli._options import check_target, readable, runtime_option, to_json, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from edgellm.benchmarks.harness import Report, Series
    from edgellm.bundle import Bundle


@click.command(short_help="Measure a bundle on this machine.")
@click.argument("bundle", type=click.Path(path_type=Path))
@runtime_option("each that is installed, in turn")
@click.option("--trials", type=click.IntRange(min=1), default=5, show_default=True, help="Measured runs of each case.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads; the default suits the machine.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="F", help="Write every figure to F, '-' for stdout."
)
def command(bundle: Path, runtime: str | None, trials: int, threads: int | None, json_file: Path | None) -> None:
    """Measure BUNDLE: prefill and decode speed, time to first token, load time, memory.

    Where several runtimes are measured at the default number of threads, the one that decodes fastest becomes the one that
    run, chat and edgellm.load take on this machine.
    """
    from rich.console import Console

    from edgellm.bundle import Bundle
    from edgellm.runtimes.preference import choose

    if json_file is not None and json_file != Path("-"):
        check_target(json_file)
    opened = Bundle.open(bundle)
    reports = reports_of(opened, runtime, trials, threads)
    choice = choose(opened)
    value = {
        "reports": [report.to_json() for report in reports],
        "default": {"runtime": choice.name, "reason": choice.reason},
    }
    if json_file == Path("-"):
        click.echo(to_json(value))
        return
    if json_file is not None:
        write_json(json_file, value)
    first = reports[0]
    click.echo(f"{first.bundle}: {first.source}, {first.recipe}")
    Console().print(_table(reports))
    for note in dict.fromkeys(note for report in reports for note in report.notes):
        click.echo(note)
    if len(opened.graphs) > 1:
        click.echo(f"default runtime: {choice.name}; {choice.reason}")
    click.echo(", ".join([first.machine.cpu, f"{first.threads} threads", *map(_package, reports)]))


def reports_of(bundle: Bundle, runtime: str | None, trials: int, threads: int | None) -> list[Report]:
    """A report for each runtime; what they say of each other is remembered."""
    from rich.console import Console

    from edgellm.benchmarks.apart import measure_apart
    from edgellm.benchmarks.harness import Settings
    from edgellm.runtimes import adapters, preference

    names: list[str | None] = [runtime]
    if runtime is None and (usable := adapters.installed(bundle)):
        names = list(usable)
    reports = []
    with Console(stderr=True).status("measuring") as status:
        for name in names:

            def show(case: str, name: str | None = name) -> None:
                status.update(f"measuring {case}" if name is None else f"measuring {case} with {name}")

            reports.append(measure_apart(bundle.path, Settings(trials=trials), runtime=name, threads=threads, progress=show))
    if runtime is None and threads is None:
        preference.remember(bundle, {report.runtime: report.decode.median for report in reports})
    return reports


def _package(report: Report) -> str:
    package = importlib.import_module(f"edgellm.runtimes.{report.runtime}").PACKAGE
    return f"{package} {report.versions.get(package, '')}".strip()


def _table(reports: Sequence[Report]) -> Table:
    from rich.table import Table

    table = Table(caption="median (lowest to highest)")
    table.add_column("measure")
    for report in reports:
        table.add_column(report.runtime, justify="right")
    for row in zip(*(report.series for report in reports), strict=True):  # the cases are the same: so are model and settings
        table.add_row(row[0].name, *map(_cell, row))
    peaks = [report.peak_rss for report in reports]
    if None not in peaks:
        table.add_row("peak RSS", *(readable(peak or 0) for peak in peaks))
    return table


def _cell(series: Series) -> str:
    median = f"{_number(series.median)} {series.unit}"
    return median if len(series.values) == 1 else f"{median} ({_number(min(series.values))} to {_number(max(series.values))})"


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
