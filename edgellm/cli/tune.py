"""`edgellm tune`: find the fastest way to run a bundle on this machine, and keep it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli._options import check_target, to_json, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from edgellm.benchmarks.tune import Tuning
    from edgellm.runtimes.tuned import How

ENOUGH = 6  # rounds for an interval that says something


@click.command(short_help="Find the fastest way to run a bundle here.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="F", help="Write every measurement to F, '-' for stdout."
)
def command(bundle: Path, json_file: Path | None) -> None:
    """Find the runtime, threads, CPUs and prompt chunk with which BUNDLE is fastest on this machine.

    What is surely faster than the default becomes what run, chat and edgellm.load take here; where nothing is, the default
    stays. Takes minutes, and wants a machine that does nothing else. Interrupted, it changes nothing.
    """
    from rich.console import Console

    from edgellm._version import __version__
    from edgellm.benchmarks.machine import machine
    from edgellm.benchmarks.tune import tune
    from edgellm.bundle import Bundle
    from edgellm.runtimes import tuned

    if json_file is not None and json_file != Path("-"):
        check_target(json_file)
    opened = Bundle.open(bundle)
    with Console(stderr=True).status("measuring", refresh_per_second=1) as status:
        tuning = tune(opened.path, progress=status.update)
    value = {
        "bundle": opened.path.resolve().name,
        "version": __version__,
        "machine": dataclasses.asdict(machine()),
        **dataclasses.asdict(tuning),
    }
    found = tuned.Tuned(tuning.chosen, tuning.turn, tuning.default_turn)
    if json_file == Path("-"):
        click.echo(to_json(value))
        tuned.keep(opened, tuned=found)
        return
    Console().print(_table(tuning))
    if json_file is not None:
        write_json(json_file, value)
    tuned.keep(opened, tuned=found)
    for how, why in tuning.failed:
        click.echo(f"left out: {_said(how, tuning)}: {why}")
    for decision in tuning.decisions:
        taken = "taken" if decision.taken else "not taken"
        click.echo(f"{_said(decision.candidate, tuning)} against {_said(decision.base, tuning)}: {decision.text}, {taken}")
    stays = " as before" if tuning.chosen == tuning.default else ""
    click.echo(f"from now on{stays}: {_said(tuning.chosen, tuning)}; {tuning.reason}")


def _said(how: How, tuning: Tuning) -> str:
    """With the threads that the machine gives by default in numbers."""
    threads = tuning.topology.threads if how.threads is None else how.threads
    return f"{how.runtime}, {dataclasses.replace(how, threads=threads).settings}"


def _table(tuning: Tuning) -> Table:
    from rich.table import Table

    from edgellm.benchmarks.turn import ANSWER, PROMPT

    table = Table(caption=f"a turn: {PROMPT} tokens in, {ANSWER} out; medians, and times as fast as the default")
    for name in ("way", "turn", "its prompt", "times", "rounds"):
        table.add_column(name, justify="left" if name == "way" else "right")
    table.add_column("outcome")
    for row in tuning.rows:
        times = "" if row.how == tuning.default else f"{row.ratio.value:.2f}"
        if times and row.ratio.low is not None and row.rounds >= ENOUGH:
            times += f" ({row.ratio.low:.2f}-{row.ratio.high:.2f})"
        table.add_row(_said(row.how, tuning), f"{row.turn:.3g} s", f"{row.prefill:.3g} s", times, str(row.rounds), row.outcome)
    return table
