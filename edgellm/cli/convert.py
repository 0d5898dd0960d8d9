"""`edgellm convert`: a model becomes a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

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
    default="int4",
    show_default=True,
    help="Bits of the linear weights; under int4 the embedding and the head keep 8.",
)
@click.option(
    "--method",
    help="How weights are rounded: rtn; imatrix, which weighs errors by a text; gptq, which makes up for them as well. "
    "[default: imatrix for int4, else rtn]",
)
@click.option(
    "--block-size",
    type=click.Choice(["0", "16", "32", "64", "128"]),
    help="Weights that share a scale: small is closer to the source, large is faster; 0 is a whole row (tflite, and the "
    "default and only choice of tflite-compat; elsewhere 32).",
)
@click.option(
    "--kv",
    type=click.Choice(["fp32", "int8"]),
    help="What keys and values are kept in: int8 is smaller, faster after long prompts [default: int8 on tflite, else fp32]",
)
@click.option(
    "--calibration",
    metavar="FILE|none",
    help="A text of the model's domain to weigh rounding errors by. [default: one that comes with edgellm]",
)
@click.option("--adapter", metavar="LORA_DIR", help="A PEFT LoRA to merge: a folder, or a hub id.")
@click.option("--max-ram", type=Size(), metavar="SIZE", help="Memory to stay under, as 600M or 2G.")
@click.option("--max-context", type=click.IntRange(min=1), metavar="N", help="Longest context that the bundle serves.")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a hub model.")
def command(
    source: str,
    output: Path,
    target: str,
    quant: str,
    method: str | None,
    block_size: str | None,
    kv: str | None,
    calibration: str | None,
    adapter: str | None,
    max_ram: int | None,
    max_context: int | None,
    revision: str | None,
) -> None:
    """Convert SOURCE (a .gguf file, a Hugging Face folder or a hub id) into a bundle."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from edgellm.conversion import Progress, convert

    columns = (TextColumn("{task.description:<28}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    started = time.perf_counter()
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading, calibrating", total=None)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.done_bytes, total=progress.total_bytes, description=progress.name)

        bundle = convert(
            source,
            output,
            target=target,
            quant=quant,
            method=method,
            block_size=None if block_size is None else int(block_size),
            kv=kv,
            calibration=calibration,
            adapter=adapter,
            max_ram=max_ram,
            max_context=max_context,
            revision=revision,
            progress=show,
        )
    elapsed = time.perf_counter() - started
    click.echo(f"{output}: {bundle.spec.architecture}, {quant}, {readable(bundle.size())}, made in {elapsed:.1f} s")
