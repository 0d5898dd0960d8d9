"""`edgellm convert`: a model becomes a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from edgellm.cli._fidelity import said
from edgellm.cli._options import Size, readable


class Target(click.ParamType[str]):
    """One of the converter's targets; they are looked up when somebody asks, so that other commands start fast."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as it is: `edgellm.convert` knows which there are, and says so."""
        return str(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What `--help` shows."""
        from edgellm.converters.targets import choices

        return f"[{'|'.join(choices())}]"


@click.command(short_help="Make a bundle of a model.")
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The bundle to make.")
@click.option(
    "--target", type=Target(), default="onnx", show_default=True, help="Runtime to make a graph for; both: onnx and tflite."
)
@click.option(
    "--quant",
    type=click.Choice(["int4", "int8", "fp32"]),
    help="Bits of the linear weights; under int4 the embedding and the head keep 8. [default: what --recipe says, or int4]",
)
@click.option(
    "--method",
    metavar="[rtn|imatrix|awq|gptq]",
    help="How weights are rounded: to nearest, or by what a text shows of the model. [default: gptq for int4, else rtn; codes "
    "that the source brings, on a grid that the runtime has, are kept as they are]",
)
@click.option(
    "--block-size",
    type=click.Choice(["0", "16", "32", "64", "128"]),
    help="Weights that share a scale: small is closer to the source, large is faster; 0 is a whole row (tflite, and the "
    "default and only choice of tflite-compat; elsewhere 32).",
)
@click.option(
    "--recipe", type=click.Path(path_type=Path), metavar="FILE", help="TOML that gives some tensors other bits or blocks."
)
@click.option(
    "--bpw",
    type=click.FloatRange(min=1, max=16),
    metavar="BITS",
    help="Bits per linear weight, spent where they do most (int4). [default: a little more than all weights in 4 bits take]",
)
@click.option(
    "--kv",
    type=click.Choice(["fp32", "int8"]),
    help="What keys and values are kept in: int8 is smaller, faster after long prompts [default: int8 on tflite, else fp32]",
)
@click.option(
    "--activations",
    metavar="[dynamic|int16|none]",
    help="What comes into products with quantized weights: 8 bits, rounded as it comes, 16 with scales from a text (tflite; "
    "slow on a CPU), or float32 (onnx; slow). [default: dynamic, and on onnx float32 where a text shows it costs too much]",
)
@click.option(
    "--calibration",
    metavar="FILE|none",
    help='A text of the model\'s domain to weigh rounding errors by, or conversations as .jsonl, {"messages": [...]} a line, '
    "which the model's chat template writes out. [default: one that comes with edgellm]",
)
@click.option("--adapter", metavar="LORA_DIR", help="A PEFT LoRA to merge: a folder, or a hub id.")
@click.option("--max-ram", type=Size(), metavar="SIZE", help="Memory to stay under, as 600M or 2G.")
@click.option("--max-context", type=click.IntRange(min=1), metavar="N", help="Longest context that the bundle serves.")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a hub model.")
@click.option(
    "--preset",
    type=click.Choice(["best", "fast"]),
    default="best",
    show_default=True,
    help="fast: rtn unless a method is named, and a short look at how close the bundle is to its source.",
)
@click.option("--no-eval", is_flag=True, help="Do not measure how close the bundle is to its source.")
@click.option("--allow-degraded", is_flag=True, help="Keep a bundle that lost more than it should; it is marked.")
def command(
    source: str,
    output: Path,
    target: str,
    quant: str | None,
    method: str | None,
    block_size: str | None,
    recipe: Path | None,
    kv: str | None,
    activations: str | None,
    calibration: str | None,
    adapter: str | None,
    max_ram: int | None,
    max_context: int | None,
    revision: str | None,
    bpw: float | None,
    preset: str,
    no_eval: bool,
    allow_degraded: bool,
) -> None:
    """Convert SOURCE (a .gguf file, a Hugging Face folder or a hub id) into a bundle."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from edgellm import activations as activations_of
    from edgellm.conversion import Progress, convert

    columns = (TextColumn("{task.description:<28}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    started = time.perf_counter()
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading, calibrating", total=None)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total, description=progress.name)

        bundle = convert(
            source,
            output,
            target=target,
            quant=quant,
            method=method,
            block_size=None if block_size is None else int(block_size),
            recipe=recipe,
            kv=kv,
            activations=activations,
            calibration=calibration,
            adapter=adapter,
            max_ram=max_ram,
            max_context=max_context,
            revision=revision,
            bits_per_weight=bpw,
            preset=preset,
            evaluate=not no_eval,
            allow_degraded=allow_degraded,
            progress=show,
        )
    elapsed = time.perf_counter() - started
    click.echo(
        f"{output}: {bundle.spec.architecture}, {bundle.recipe.name}, {readable(bundle.size())}, made in {elapsed:.1f} s"
    )
    for name, graph in bundle.graphs.items():
        if activations_of.differ(bundle.recipe_of(graph)):
            click.echo(f"{name}: activations: {activations_of.said(bundle.recipe_of(graph), bundle.spec)}")
    for line in said(bundle):
        click.echo(line)
