"""`edgellm bench`: what bundles do on this machine, in each of their runtimes, and how far that is from its limit."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli._bench_compare import OrCompare
from edgellm.cli._bench_hosts import HERE, on_hosts
from edgellm.cli._bench_table import packages, remarks, table
from edgellm.cli._options import Duration, Numbers, check_target, names_of
from edgellm.errors import UsageError

if TYPE_CHECKING:
    from edgellm.benchmarks.result import Run, Settings
    from edgellm.bundle import Bundle

STDOUT = Path("-")
REFRESH = 1  # times a second: to draw on the terminal is work on the machine that is measured


@click.command(cls=OrCompare, short_help="Measure bundles on this machine.")
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--runtime", metavar="R,...", help="Runtimes to measure; default: each that is installed.")
@click.option("--threads", type=Numbers(1), metavar="N,...", help="Numbers of threads; default: what suits the machine.")
@click.option(
    "--prompt", type=Numbers(1), default="128,512", show_default=True, metavar="N,...", help="Prompt lengths, tokens."
)
@click.option("--depth", type=Numbers(0), default="0,1024", show_default=True, metavar="N,...", help="Tokens before decoding.")
@click.option("--decode", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="Tokens decoded.")
@click.option("--trials", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Rounds that count.")
@click.option("--sustained", type=Duration(), metavar="TIME", help="Decode without a break as well, such as 10m.")
@click.option(
    "--peers", metavar="P,...", help="Others to measure beside it: llama.cpp, onnxruntime-genai, openvino, litert-lm."
)
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="With --peers: the file or folder that BUNDLES are made of.",
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="H",
    help="Measure there instead: ssh://user@board, a name of hosts.toml, 'all' of it, or 'here'. Give it once for each.",
)
@click.option("--phone", is_flag=True, help="Measure in the browser of a phone, which scans a code.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="F",
    help="Write the run to F, '-' for stdout; of several hosts, a file for each into the folder F.",
)
@click.option("--report", type=click.Path(path_type=Path), metavar="F", help="Draw a report: .html or .md, of all hosts.")
def command(
    bundles: tuple[Path, ...],
    runtime: str | None,
    threads: tuple[int, ...] | None,
    prompt: tuple[int, ...],
    depth: tuple[int, ...],
    decode: int,
    trials: int,
    sustained: float | None,
    peers: str | None,
    source: Path | None,
    hosts: tuple[str, ...],
    phone: bool,
    json_file: Path | None,
    report: Path | None,
) -> None:
    """Measure BUNDLES side by side: prefill and decode speed, time to the first token, load, memory, share of the limit.

    \b
    Rounds are measured in shuffled order, each bundle and runtime in a process of its own. One bundle in all of its runtimes at
    the default number of threads: the one that surely decodes fastest becomes what run, chat and edgellm.load take here.
    'edgellm bench compare OLD.json NEW.json' says what differs between two runs. With several hosts, 'here' is measured first,
    then the others at once; one that fails is a row that says why, and the exit status 1.
    """
    from rich.console import Console

    from edgellm.benchmarks import report as reports
    from edgellm.benchmarks import result
    from edgellm.benchmarks.result import Settings
    from edgellm.bundle import Bundle

    if report is not None:
        reports.check(report)
    if (peers is None) != (source is None):
        raise UsageError(
            "peers are measured on the model that the bundles are made of", where="--peers", fix="give --source too"
        )
    settings = Settings(threads or (0,), prompt, depth, decode, trials, sustained or 0.0)
    opened = [Bundle.open(path) for path in bundles]
    if hosts != (HERE,) and (hosts or phone):
        if peers is not None:
            raise UsageError("peers are measured on this machine alone", where="--peers", fix="leave out --host and --phone")
        on_hosts(hosts, opened, names_of(runtime), settings, phone=phone, json_file=json_file, report=report, here=measured)
        return
    if json_file is not None and json_file != STDOUT:
        check_target(json_file)
    run = measured(opened, names_of(runtime), settings, names_of(peers), source)
    if json_file == STDOUT:
        click.echo(result.to_json(run), nl=False)
    else:  # before any file: a disk that is full by now takes nothing of it away
        Console().print(table(run))
        for line in [*remarks(run), *defaults(opened, run), packages(run)]:
            click.echo(line)
        if json_file is not None:
            result.write(run, json_file)
    if report is not None:
        reports.write([run], report)
    if not run.complete:
        raise KeyboardInterrupt


def measured(
    bundles: Sequence[Bundle],
    runtimes: Sequence[str],
    settings: Settings,
    peers: Sequence[str] = (),
    source: Path | None = None,
) -> Run:
    """The run; where it tells apart all runtimes of one bundle as they are loaded by default, what it found is remembered."""
    from rich.console import Console
    from rich.markup import escape

    from edgellm.benchmarks import run as bench
    from edgellm.runtimes import preference

    command = shlex.join(["edgellm", *sys.argv[1:]])
    with Console(stderr=True).status("measuring", refresh_per_second=REFRESH) as status:

        def show(step: str) -> None:
            status.update(escape(f"measuring: {step}"))

        entries, notes = bench.entries_of(bundles, runtimes, settings)
        if source is not None:
            from edgellm.benchmarks.peers import beside

            entries = beside.entries(peers, source, bundles, entries, settings, show)
        run = bench.go(entries, settings, command=command, progress=show, notes=notes)
    if not runtimes and settings.threads == (0,) and run.complete:
        for bundle, label in zip(bundles, bench.labels([bundle.path for bundle in bundles]), strict=True):
            preference.remember(bundle, told_apart(run, label))
    return run


def told_apart(run: Run, model: str) -> dict[str, float]:
    """Tokens a second after the shortest context, by runtime; empty where no runtime is faster than all others for sure."""
    from edgellm.benchmarks.figures import Figure, figures
    from edgellm.benchmarks.spread import ratio

    found: dict[str, Figure] = {}
    names = {lane.id: lane.runtime for lane in run.lanes if lane.model == model and lane.runtime and lane.failed is None}
    for each in figures(run):
        if each.lane in names and (each.case.kind, each.measure) == ("decode", "speed"):
            found.setdefault(names[each.lane], each)
    best = max(found, key=lambda name: found[name].median, default="")
    sure = all(ratio(found[name], found[best], run.settings.seed).verdict == "faster" for name in found if name != best)
    return {name: each.median for name, each in found.items()} if sure else {}


def defaults(bundles: Sequence[Bundle], run: Run) -> list[str]:
    """What is loaded from now on."""
    from edgellm.benchmarks.run import labels
    from edgellm.runtimes.preference import choose

    lines = []
    for bundle, label in zip(bundles, labels([bundle.path for bundle in bundles]), strict=True):
        if len(bundle.graphs) > 1:
            choice = choose(bundle)
            open_ = "" if told_apart(run, label) else " (these rounds tell no difference; three or more can)"
            lines.append(f"{bundle.path.resolve().name}: default runtime {choice.name}; {choice.reason}{open_}")
    return lines
