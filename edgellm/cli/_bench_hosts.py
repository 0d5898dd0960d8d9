"""`edgellm bench --host`: bundles on other machines, and their runs as tables, files and one report."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli._bench_table import packages, remarks, table
from edgellm.cli._options import check_target
from edgellm.errors import EdgeError, UsageError, plain

if TYPE_CHECKING:
    from edgellm.benchmarks.result import Run, Settings
    from edgellm.bundle import Bundle

    Measure = Callable[[Sequence[Bundle], Sequence[str], Settings], Run]

HERE = "here"  # this machine, beside others
STDOUT = Path("-")


def on_hosts(
    names: Sequence[str],
    bundles: Sequence[Bundle],
    runtimes: Sequence[str],
    settings: Settings,
    *,
    phone: bool,
    json_file: Path | None,
    report: Path | None,
    here: Measure,
) -> None:
    """Measure, show and write; ends the command with status 1 where a host has no result.

    Args:
        here: measures on this machine.
    """
    from rich.console import Console

    from edgellm.benchmarks import report as reports
    from edgellm.benchmarks import result
    from edgellm.benchmarks.hosts import Target, fleet

    targets = fleet.resolve([name for name in dict.fromkeys(names) if name != HERE])
    targets += [Target("phone", "phone://")] if phone else []
    several = len(targets) + (HERE in names) > 1
    _check(bundles, runtimes, json_file, several=several)
    command = shlex.join(["edgellm", *sys.argv[1:]])
    runs = [_here(bundles, runtimes, settings, command, here)] if HERE in names else []
    console = Console(stderr=True)
    if targets and all(run.complete for run in runs):  # who ends the first does not want the others
        runs += fleet.measure(targets, bundles, runtimes, settings, command=command, console=console)
    if json_file == STDOUT:
        click.echo(result.to_json(runs[0]), nl=False)
    else:
        try:
            if json_file is not None:
                _write(runs, json_file, several=several)
        finally:  # a disk that is full by now takes nothing of it away
            for run in runs:
                _show(run)
    if report is not None:
        reports.write(runs, report)
    reasons = [reason for run in runs if (reason := fleet.failed(run)) is not None]
    for reason in reasons:
        click.echo(f"error: {plain(reason)}", err=True)
    if not all(run.complete for run in runs):
        raise KeyboardInterrupt
    if reasons:
        click.get_current_context().exit(1)


def _check(bundles: Sequence[Bundle], runtimes: Sequence[str], json_file: Path | None, *, several: bool) -> None:
    """What would fail after the measurement, or on each host alike."""
    from edgellm.benchmarks.run import labels
    from edgellm.bundle import graph_name

    labels([bundle.path for bundle in bundles])
    for bundle in bundles:
        for name in runtimes:
            if graph_name(name) not in bundle.graphs:
                fix = f"it has: {', '.join(bundle.graphs)}"
                raise UsageError(f"the bundle has no graph for the runtime '{name}'", where=bundle.path, fix=fix)
    if json_file is None or (json_file == STDOUT and not several):
        return
    if several and (json_file == STDOUT or (json_file.exists() and not json_file.is_dir())):
        raise UsageError("several hosts have a file each", where=f"--json {json_file}", fix="give a folder")
    check_target(json_file / "here.json" if several and json_file.is_dir() else json_file)


def _here(bundles: Sequence[Bundle], runtimes: Sequence[str], settings: Settings, command: str, measure: Measure) -> Run:
    """This machine fails as the others do: as a row."""
    from edgellm.benchmarks import facts
    from edgellm.benchmarks.hosts import Target
    from edgellm.benchmarks.hosts.failure import failed_run

    try:
        return measure(bundles, runtimes, settings)
    except EdgeError as error:
        known = facts.here()
        return failed_run(Target("", ""), error, bundles, runtimes, settings, command=command, facts=known)


def _show(run: Run) -> None:
    """Its table, where it has figures; of one that failed the reason is said at the end."""
    from rich.console import Console

    from edgellm.benchmarks.hosts import fleet

    click.echo(f"\n{plain(run.host or HERE)}")
    if fleet.failed(run) is not None:
        click.echo("no result")
        return
    if run.machine.emulated is None:
        Console().print(table(run))
    for line in [*remarks(run), packages(run)]:
        click.echo(plain(line))


def _write(runs: Sequence[Run], path: Path, *, several: bool) -> None:
    from edgellm.benchmarks import result

    if not several:
        result.write(runs[0], path)
        return
    path.mkdir(exist_ok=True)
    taken: set[str] = set()
    for run in runs:
        name = stem = re.sub(r"[^A-Za-z0-9._-]+", "-", run.host or HERE).strip("-.") or "host"
        while name in taken:
            name = f"{stem}-{len(taken)}"
        taken.add(name)
        result.write(run, path / f"{name}.json")
