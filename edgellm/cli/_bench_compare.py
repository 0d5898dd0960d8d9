"""`edgellm bench compare`: which differences between two runs are real."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli._options import check_target, readable, to_json, write_json
from edgellm.errors import UsageError, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edgellm.benchmarks.regression import Comparison, Outcome

NAME = "compare"
READ_HOW = "medians; ratio new / old of geometric means; all intervals together hold the truth {sure:.0%} of the time"


class OrCompare(click.Command):
    """A command that takes files, and hands over to `compare` where its first argument is that word.

    A file of that name is measured as ./compare.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of whichever command it is."""
        if args[:1] == [NAME]:
            return command.make_context(f"{info_name} {NAME}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that the context was made for."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(NAME, short_help="Say which differences between two runs are real.")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--least",
    type=click.FloatRange(min=0, max=100),
    default=3.0,
    show_default=True,
    metavar="PERCENT",
    help="What a difference has to be more than, with its whole interval.",
)
@click.option("--anyway", is_flag=True, help="Answer although something speaks against it: doubts, another machine.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="F", help="Write the comparison to F, '-' for stdout."
)
def command(old: Path, new: Path, least: float, anyway: bool, json_file: Path | None) -> None:
    """Compare the runs OLD and NEW, files that 'edgellm bench --json' wrote.

    Exit status: 0 no regression, 1 a regression, 2 no answer: the machine, the runs or the noise do not allow one.
    """
    from rich.console import Console

    from edgellm.benchmarks.regression import compare
    from edgellm.benchmarks.result import read

    to_stdout = json_file == Path("-")
    if json_file is not None and not to_stdout:
        check_target(json_file)
    outcome = compare(read(old), read(new), least=least / 100)
    if outcome.against and not anyway:
        first, *others = outcome.against
        more = f" (and {len(others)} more)" if others else ""
        raise UsageError(f"no answer: {first}{more}", where=new, fix="measure both again, or give --anyway")
    if to_stdout:
        click.echo(to_json(_as_json(outcome)))
    else:
        if json_file is not None:
            write_json(json_file, _as_json(outcome))
        _show(outcome, Console())
    if outcome.regressions:
        click.get_current_context().exit(1)
    if outcome.blind * 2 > len(outcome.rows) and not anyway:
        what = f"no answer: in {outcome.blind} of {len(outcome.rows)} rows a slow-down of 30 % would not be seen"
        raise UsageError(what, where=new, fix="measure with more --trials or on a quieter machine, or give --anyway")


def _as_json(outcome: Outcome) -> dict[str, Any]:
    return {**dataclasses.asdict(outcome), "regressions": len(outcome.regressions), "blind": outcome.blind}


def _show(outcome: Outcome, console: Console) -> None:
    for line in (*(f"against it: {each}" for each in outcome.against), *outcome.remarks):
        click.echo(plain(line))
    for lane in dict.fromkeys(row.lane for row in outcome.rows):
        console.print(_table(lane, [row for row in outcome.rows if row.lane == lane]))
    click.echo(READ_HOW.format(sure=1 - outcome.alpha))
    click.echo(_summary(outcome))


def _summary(outcome: Outcome) -> str:
    found = len(outcome.regressions)
    count = "no regression" if found == 0 else f"{found} regression{'' if found == 1 else 's'}"
    unseen = f"; in {outcome.blind} a slow-down of 30 % would not be seen" if outcome.blind else ""
    return f"{count} by more than {outcome.least * 100:g} % in {len(outcome.rows)} rows{unseen}"


def _table(lane: str, rows: list[Comparison]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(plain(lane)), title_justify="left")
    table.add_column("measure")
    for heading in ("old", "new", "ratio", "interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in rows:
        ratio = row.ratio
        around = "-" if ratio.low is None or ratio.high is None else f"{ratio.low:.2f} to {ratio.high:.2f}"
        values = (_value(value, row.unit) for value in (row.old, row.new))
        table.add_row(f"{row.case}, {row.measure}", *values, f"{ratio.value:.2f}", around, _verdict(row))
    return table


def _verdict(row: Comparison) -> str:
    if row.regression:
        return "[bold red]REGRESSION[/]"
    if row.blind:
        return "cannot tell"
    if row.improvement:
        return "better"
    return "-" if row.ratio.verdict is None else "no difference"


def _value(value: float, unit: str) -> str:
    if unit == "B":
        return readable(value)
    digits = 0 if value >= 100 else 1 if value >= 10 else 3
    return f"{value:,.{digits}f} {unit}"
