"""`edgellm chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli._answer import Ask, ask_options, interruptible, show
from edgellm.errors import EdgeError, UsageError, plain

if TYPE_CHECKING:
    from edgellm.llm import LLM

HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"

Messages = list[dict[str, str]]


@click.command(short_help="Talk to a model; the conversation stays in its KV cache.")
@click.argument("bundle", type=click.Path(path_type=Path))
@ask_options
def command(
    bundle: Path,
    system: str | None,
    max_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
    threads: int | None,
    runtime: str | None,
) -> None:
    """Talk to the model in BUNDLE. /reset forgets the conversation, /exit leaves, Ctrl-C stops an answer."""
    import edgellm

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input(), where the system has it)
    ask = Ask(max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    start: Messages = [] if system is None else [{"role": "system", "content": system}]
    if sys.stdin is None:
        raise UsageError("standard input is closed", fix="use 'edgellm run' for one prompt")
    if edgellm.Bundle.open(bundle).text.chat_template is None:
        raise UsageError("this model has no chat template", where=bundle, fix="use 'edgellm run --raw', or an instruct model")
    with edgellm.load(bundle, runtime=runtime, threads=threads) as llm:
        interactive = sys.stdin.isatty()
        if interactive:
            click.echo(f"{plain(llm.bundle.provenance.source)}: {HELP}")
        messages = list(start)
        while (line := _read(interactive)) is not None:
            text = line.strip()
            if text == "/exit":
                break
            if text == "/reset":
                messages = list(start)
                click.echo("forgotten", err=True)
            elif text.startswith("/"):
                click.echo(f"unknown command {text.split()[0]}: {HELP}", err=True)
            elif text:
                messages = _turn(llm, ask, [*messages, {"role": "user", "content": text}])


def _read(interactive: bool) -> str | None:
    """The next line; None at the end of input. Ctrl-C clears the line."""
    while True:
        try:
            return input("> " if interactive else "")
        except EOFError:
            if interactive:
                click.echo()
            return None
        except KeyboardInterrupt:
            click.echo(f"\n{HELP}", err=True)


def _turn(llm: LLM, ask: Ask, messages: Messages) -> Messages:
    """Answer the last message; the conversation with the answer, or without the question if that failed."""
    try:
        stream = ask.chat(llm, messages)
        with interruptible(stream):
            for piece in stream:
                show(piece)
    except EdgeError as error:
        click.echo(f"error: {error}", err=True)
        return messages[:-1]
    except KeyboardInterrupt:  # the second Ctrl-C, or one before the stream began
        click.echo()
        return messages[:-1]
    click.echo()
    if stream.output.finish_reason == "context":
        click.echo("the context is full: /reset starts again", err=True)
    return [*messages, {"role": "assistant", "content": stream.output.text}]
