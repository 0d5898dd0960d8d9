"""`edgellm run`: one prompt, one answer."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli._answer import Ask, ask_options, interruptible, show
from edgellm.cli._options import to_json
from edgellm.errors import UsageError

if TYPE_CHECKING:
    from edgellm.llm import LLM
    from edgellm.stream import Output, Stream


@click.command(short_help="Answer one prompt.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt")
@ask_options
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: text, ids, finish_reason, timings.")
def command(
    bundle: Path,
    prompt: str,
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
    raw: bool,
    as_json: bool,
) -> None:
    """Answer PROMPT with the model in BUNDLE, as it comes. PROMPT - reads standard input."""
    import edgellm

    if raw and system is not None:
        raise click.UsageError("--system needs the chat template, and --raw leaves it out")
    if prompt == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed", fix="give the prompt as an argument")
        prompt = sys.stdin.read()
    if not prompt.strip() and not raw:
        raise UsageError("the prompt is empty", fix="say something")
    ask = Ask(max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    with edgellm.load(bundle, runtime=runtime, threads=threads) as llm:
        stream = _start(llm, ask, prompt, system, raw)
        with interruptible(stream):
            for piece in stream:
                if not as_json:
                    show(piece)
        output = stream.output
    if as_json:
        click.echo(to_json(_as_json(output)))
    else:
        click.echo()
        if output.finish_reason == "context":
            click.echo("the context is full", err=True)
    if output.finish_reason == "cancelled":
        raise KeyboardInterrupt


def _start(llm: LLM, ask: Ask, prompt: str, system: str | None, raw: bool) -> Stream:
    if not raw and system is None and llm.bundle.text.chat_template is None:
        click.echo("this model has no chat template: continuing the prompt as plain text", err=True)
        raw = True
    if raw:
        return ask.complete(llm, prompt)
    messages = [] if system is None else [{"role": "system", "content": system}]
    return ask.chat(llm, [*messages, {"role": "user", "content": prompt}])


def _as_json(output: Output) -> dict[str, Any]:
    timings = {
        **dataclasses.asdict(output.timings),
        "prefill_tokens_per_second": output.timings.prefill_tokens_per_second,
        "decode_tokens_per_second": output.timings.decode_tokens_per_second,
    }
    return {"text": output.text, "ids": list(output.ids), "finish_reason": output.finish_reason, "timings": timings}
