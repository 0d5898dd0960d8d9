"""`edgellm compare`: bundles side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgellm.cli._options import check_target, readable, to_json, write_json
from edgellm.cli.bench import measured
from edgellm.cli.eval import runtimes_of
from edgellm.errors import RuntimeUnavailable, UsageError, plain

if TYPE_CHECKING:
    from rich.table import Table

    from edgellm.benchmarks.result import Run
    from edgellm.bundle import Bundle, Graph
    from edgellm.card import Card, Gap

Found = tuple["Gap | None", "Literal['run', 'numpy'] | None", "str | None"]  # what a column has of it
NOTHING: Found = (None, None, None)
COUNTED = (
    "bits: codes, zero points and scales as they lie in the file, those of the matrix before a rotated model's head included, "
    "over the weights of the layers' linears; embedding and head are not counted"
)


@dataclass(frozen=True)
class Column:
    """One graph of one bundle.

    Attributes:
        size: bytes of the graph's files.
        bits: of a linear weight, counted in the file; None where the package that reads it is not installed.
        gap: from the source: as measured now, or as the card has it.
        gap_by: "run" where the runtime ran for it, "numpy" where a card has only what numpy makes of the rounded weights.
        text: sha256 of what `gap` was measured on.
        speed: tokens a second by case, as `edgellm bench` measures them; nothing where its lane failed.
    """

    bundle: str
    runtime: str
    size: int
    bits: float | None
    gap: Gap | None
    gap_by: Literal["run", "numpy"] | None
    text: str | None
    speed: Mapping[str, float]


@click.command(short_help="Put bundles side by side.")
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--against", metavar="SOURCE", help="Measure KL against this source now, instead of taking it from the cards.")
@click.option(
    "--adapter",
    metavar="LORA_DIR",
    help="With --against: the PEFT LoRA that was merged into those of the bundles that have one; none: the plain model.",
)
@click.option("--trials", type=click.IntRange(min=1), default=5, show_default=True, help="Measured runs of each case.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads; the default suits the machine.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="F", help="Write every figure to F, '-' for stdout."
)
def command(
    bundles: tuple[Path, ...],
    against: str | None,
    adapter: str | None,
    trials: int,
    threads: int | None,
    json_file: Path | None,
) -> None:
    """Put BUNDLES side by side: size, bits per linear weight, KL, speed. One column a runtime that is installed."""
    from rich.console import Console

    from edgellm.benchmarks.result import Settings
    from edgellm.benchmarks.run import labels
    from edgellm.bundle import Bundle

    if json_file is not None and json_file != Path("-"):
        check_target(json_file)
    if adapter is not None and against is None:
        raise UsageError("an adapter belongs to a source", where="--adapter", fix="give --against as well")
    opened = [Bundle.open(path) for path in bundles]
    names = labels(list(bundles))
    run = measured(opened, (), Settings(threads=(threads or 0,), trials=trials))
    columns: list[Column] = []
    for bundle, name in zip(opened, names, strict=True):
        own = adapter if bundle.provenance.adapter is not None else None
        columns += _columns(bundle, name, against, own, run)
    value = {"columns": [dataclasses.asdict(column) for column in columns]}
    if json_file == Path("-"):
        click.echo(to_json(value))
        return
    if json_file is not None:
        write_json(json_file, value)
    Console().print(_table(columns))
    click.echo(COUNTED)
    if any(column.gap_by == "numpy" for column in columns):
        click.echo("* nothing ran: by numpy, with activations rounded as the runtime does; it stands for no run (edgellm eval)")
    if len({column.text for column in columns if column.text is not None}) > 1:
        click.echo("KL was measured on different texts and does not compare: give --against")
    for lane in run.lanes:
        if lane.failed is not None:
            click.echo(f"{plain(lane.id)}: no speed: {plain(lane.failed)}")
    for doubt in run.doubts:
        click.echo(f"not to be quoted: {doubt}")
    click.echo(f"{run.machine.cpu}, {run.lanes[0].threads} threads; speeds are medians, in tokens per second")
    if not run.complete:
        raise KeyboardInterrupt


def _columns(bundle: Bundle, name: str, against: str | None, adapter: str | None, run: Run) -> list[Column]:
    from rich.console import Console

    from edgellm.evaluation import evaluate

    bundle.ensure_verified()
    there = runtimes_of(bundle, None)
    gaps: dict[str, Found] = {}
    if against is None:
        gaps = {} if bundle.fidelity is None else _of_card(bundle.fidelity)
    else:
        with Console(stderr=True).status("reading") as status:
            found = evaluate(bundle, runtimes=there, against=against, adapter=adapter, on_step=lambda step: status.update(step))
        gaps = {each.runtime: (each.gap, "run", each.text.sha256) for each in found}
    speeds = {lane.runtime: _speeds(run, lane.id) for lane in run.lanes if lane.model == name}
    return [
        Column(
            bundle=name,
            runtime=runtime,
            size=sum(bundle.files[file].size for file in bundle.files_of(graph)),
            bits=_bits(bundle, graph),
            gap=gap,
            gap_by=by,
            text=text,
            speed=speeds.get(runtime, {}),
        )
        for runtime, graph in bundle.graphs.items()
        if runtime in there
        for gap, by, text in [gaps.get(runtime, NOTHING)]
    ]


def _of_card(card: Card) -> dict[str, Found]:
    """What a card has of each graph: of a run, or where nothing ran, by numpy."""
    if card.text is None:
        return {}
    text = card.text.sha256
    return {
        name: (graph.run, "run", text) if graph.run is not None else (graph.quantization, "numpy", text)
        for name, graph in card.graphs.items()
        if graph.run is not None or graph.quantization is not None
    }


def _bits(bundle: Bundle, graph: Graph) -> float | None:
    from edgellm.benchmarks import stored

    try:
        return stored.graph(bundle, graph).bits
    except RuntimeUnavailable:
        return None


def _speeds(run: Run, lane: str) -> dict[str, float]:
    """Tokens a second by the name of the case."""
    from edgellm.benchmarks.figures import figures

    return {
        each.case.name: each.median
        for each in figures(run)
        if (each.lane, each.measure) == (lane, "speed") and each.case.kind in ("prefill", "decode")
    }


def _table(columns: list[Column]) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("measure")
    for column in columns:
        table.add_column(f"{plain(column.bundle)}\n{column.runtime}", justify="right")
    table.add_row("size", *(readable(column.size) for column in columns))
    table.add_row("bits per linear weight", *("-" if each.bits is None else f"{each.bits:.2f}" for each in columns))
    marks = ["*" if each.gap_by == "numpy" else "" for each in columns]
    gaps = [(each.gap, mark) for each, mark in zip(columns, marks, strict=True)]
    table.add_row("KL, nats", *("-" if gap is None else f"{gap.kl:.4g} ± {gap.kl_error:.1g}{mark}" for gap, mark in gaps))
    table.add_row("top-1 agreement", *("-" if gap is None else f"{gap.top1:.3f}{mark}" for gap, mark in gaps))
    for name in dict.fromkeys(name for each in columns for name in each.speed):
        table.add_row(name, *(f"{each.speed[name]:,.1f}" if name in each.speed else "-" for each in columns))
    return table
