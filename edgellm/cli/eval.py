"""`edgellm eval`: how close a bundle is to its source, on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli._fidelity import said
from edgellm.cli._options import check_target, runtime_option, to_json, write_json
from edgellm.errors import plain

if TYPE_CHECKING:
    from rich.table import Table

    from edgellm.bundle import Bundle
    from edgellm.evaluation import Evaluation


@click.command(short_help="Measure how close a bundle is to its source.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", metavar="SOURCE", help="What the bundle was made of: a .gguf file, a Hugging Face folder, a hub id.")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a SOURCE on the hub.")
@click.option(
    "--adapter", metavar="LORA_DIR", help="The PEFT LoRA that was merged into the bundle; none: the plain model is the source."
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='Text to measure on, or conversations as .jsonl, {"messages": [...]} a line, which the bundle\'s chat template writes '
    "out. [default: one that comes with edgellm]",
)
@runtime_option("each that is installed, in turn")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="F", help="Write every figure to F, '-' for stdout."
)
def command(
    bundle: Path,
    against: str | None,
    revision: str | None,
    adapter: str | None,
    text: Path | None,
    runtime: str | None,
    json_file: Path | None,
) -> None:
    """Measure what BUNDLE says of a text: perplexity, and beside its source KL divergence, agreement and what differs.

    Without --against there is perplexity alone, and what the bundle's fidelity card says.
    """
    from rich.console import Console

    from edgellm.bundle import Bundle
    from edgellm.evaluation import evaluate

    if json_file is not None and json_file != Path("-"):
        check_target(json_file)
    opened = Bundle.open(bundle)
    opened.ensure_verified()
    with Console(stderr=True).status("reading") as status:
        found = evaluate(
            opened,
            runtimes=runtimes_of(opened, runtime),
            against=against,
            revision=revision,
            adapter=adapter,
            text=text,
            on_step=lambda step: status.update(step),
        )
    value = {"evaluations": [dataclasses.asdict(each) for each in found]}
    if json_file == Path("-"):
        click.echo(to_json(value))
        return
    if json_file is not None:
        write_json(json_file, value)
    Console().print(_table(found))
    for each in found:
        _show_differences(each)
    read = found[0].text
    click.echo(f"text: {plain(read.name)}, {read.positions} positions, token ids {read.sha256[:16]}")
    click.echo(", ".join([found[0].machine, *dict.fromkeys(each.version for each in found)]))
    if against is None:
        lines = said(opened) or ["no fidelity card: it was made by an earlier edgellm"]
        for line in lines:
            click.echo(f"card, {line}")


def runtimes_of(bundle: Bundle, runtime: str | None) -> list[str]:
    """The graphs that a command means: the named one, or each whose runtime is installed.

    Raises:
        UsageError: the bundle has no such graph.
        RuntimeUnavailable: none is installed.
    """
    from edgellm.bundle import graph_name
    from edgellm.errors import RuntimeUnavailable, UsageError
    from edgellm.runtimes import adapters

    if runtime is not None:
        if graph_name(runtime) not in bundle.graphs:
            fix = f"it has: {', '.join(bundle.graphs)}"
            raise UsageError(f"the bundle has no graph for the runtime '{runtime}'", where=bundle.path, fix=fix)
        return [graph_name(runtime)]
    there = list(adapters.installed(bundle))
    if not there:
        fix = "; ".join(f"pip install 'edgellm[{name.replace('_', '-')}]'" for name in bundle.graphs)
        raise RuntimeUnavailable("no runtime of this bundle is installed", where=bundle.path, fix=fix)
    return there


def _table(found: Sequence[Evaluation]) -> Table:
    from rich.table import Table

    with_adapter = "" if found[0].adapter is None else f" with {found[0].adapter}"
    table = Table(caption=None if found[0].gap is None else f"against {plain(f'{found[0].source}{with_adapter}')}")
    table.add_column("measure")
    for each in found:
        table.add_column(each.runtime, justify="right")
    table.add_row("perplexity", *(f"{each.perplexity:.3f}" for each in found))
    if found[0].source_perplexity is not None:
        table.add_row("perplexity of the source", *(f"{each.source_perplexity:.3f}" for each in found))
    gaps = [each.gap for each in found if each.gap is not None]
    if gaps:
        table.add_row("KL, nats", *(f"{gap.kl:.4g} ± {gap.kl_error:.1g}" for gap in gaps))
        table.add_row("KL, 99th percentile", *(f"{gap.kl_p99:.4g}" for gap in gaps))
        table.add_row("top-1 agreement", *(f"{gap.top1:.3f}" for gap in gaps))
    return table


def _show_differences(found: Evaluation) -> None:
    """Where the likeliest next token is another, with what leads there."""
    if not found.differences:
        return
    click.echo(f"{found.runtime} finds other tokens likeliest, first at:")
    for each in found.differences:
        ours, theirs = (
            f"{text!r} ({share:.0%})"
            for text, share in ((each.runtime, each.runtime_probability), (each.source, each.source_probability))
        )
        click.echo(f"  {each.position}: {plain(each.before)!r} > {ours}, the source {theirs}")
