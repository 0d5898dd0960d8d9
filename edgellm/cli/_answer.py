"""Asking a loaded model, as `run` and `chat` do: the options, and a stream that Ctrl-C ends."""

from __future__ import annotations

import contextlib
import signal
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli._options import Command, runtime_option

if TYPE_CHECKING:
    from edgellm.llm import LLM
    from edgellm.stream import Stream


@dataclass(frozen=True)
class Ask:
    """How to generate; None leaves a setting to the model's authors."""

    max_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None

    def chat(self, llm: LLM, messages: Sequence[Mapping[str, Any]]) -> Stream:
        """The answer to a conversation."""
        return llm.chat(
            messages,
            stream=True,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )

    def complete(self, llm: LLM, prompt: str) -> Stream:
        """The continuation of a text."""
        return llm.stream(
            prompt,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )


def ask_options(command: Command) -> Command:
    """The options that fill an `Ask`, --runtime and --threads. What they do not set, the model's authors did."""
    authors = "default: as the model's authors set it"
    for option in (
        runtime_option("the fastest by 'edgellm bench', else onnx"),
        click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads; the default suits the machine."),
        click.option("--seed", type=click.IntRange(min=0), metavar="S", help="The same seed gives the same text."),
        click.option("--repetition-penalty", type=float, metavar="R", help=f"Above 1 makes repeating less likely; {authors}."),
        click.option("--min-p", type=float, metavar="P", help=f"Leave out tokens below P times the best one; {authors}."),
        click.option("--top-p", type=float, metavar="P", help=f"Keep the likeliest tokens that reach P; {authors}."),
        click.option("--top-k", type=int, metavar="K", help=f"Keep the K likeliest tokens, 0 all; {authors}."),
        click.option("--temperature", type=float, metavar="T", help=f"0 takes the likeliest token; {authors}."),
        click.option(
            "--max-tokens", type=click.IntRange(min=1), default=512, show_default=True, metavar="N", help="New tokens at most."
        ),
        click.option("--system", metavar="S", help="The system message."),
    ):
        command = option(command)
    return command


def show(piece: str) -> None:
    """Print a piece of an answer. A terminal gets no control characters: it would obey what a model says."""
    if sys.stdout.isatty():
        piece = "".join(c for c in piece if c in "\n\t" or unicodedata.category(c) != "Cc")
    click.echo(piece, nl=False)


@contextlib.contextmanager
def interruptible(stream: Stream) -> Iterator[None]:
    """Ctrl-C ends the stream at its next token, with the text so far; a second one is the program's."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        stream.cancel()

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
