"""`edgellm export`: a bundle becomes the file of another runtime."""

from __future__ import annotations

import time
from pathlib import Path

import click

from edgellm.cli._options import readable


@click.command(short_help="Make the file of another runtime of a bundle.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--litertlm",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE.litertlm",
    help="The file to make for Google's LiteRT-LM; BUNDLE needs a TFLite graph (convert --target tflite).",
)
@click.option(
    "--max-context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens that prompt and answer may have together, fixed in the file; the bundle's own, at most 2048, if not given.",
)
def command(bundle: Path, litertlm: Path, max_context: int | None) -> None:
    """Pack the model in BUNDLE, its tokenizer and its chat template as one file that LiteRT-LM runs."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bar

    from edgellm.conversion import Progress
    from edgellm.litertlm import export_litertlm

    console = Console(stderr=True)
    started = time.perf_counter()
    columns = (TextColumn("{task.description:<10}"), BarColumn(), DownloadColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total, description=progress.name)

        file = export_litertlm(bundle, litertlm, max_context=max_context, progress=show)
    elapsed = time.perf_counter() - started
    click.echo(f"{litertlm}: {readable(file.stat().st_size)}, made in {elapsed:.1f} s")
