"""What the commands that compare engines share: their options, and the way from those to a report."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edgellm.benchmarks import models as real_models
from edgellm.benchmarks import result
from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers import quality, quiet
from edgellm.benchmarks.peers.measure import DEFAULT, measure, open_model, prepare
from edgellm.benchmarks.permuted import SUFFIX, permuted
from edgellm.benchmarks.result import Run, Settings
from edgellm.benchmarks.script import say
from edgellm.errors import ResourceError, UsageError

OUTPUTS = ("json", "markdown", "plot")


def parser(program: str, description: str, *, models: Sequence[str], engines: Sequence[str]) -> argparse.ArgumentParser:
    """The options of a command; `models` and `engines` are what it compares unless told."""
    made = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    names = ", ".join(real_models.MODELS)
    made.add_argument(
        "--models",
        nargs="+",
        default=list(models),
        metavar="NAME",
        help=f"{names}, or paths; with {SUFFIX} after it, on a grid that favours nobody (default: {' '.join(models)})",
    )
    made.add_argument(
        "--peers",
        nargs="+",
        default=list(engines),
        metavar="PEER",
        help="such as llama.cpp, llama.cpp:q4_0 or 'llama.cpp:*imatrix'",
    )
    made.add_argument("--threads", nargs="+", type=int, default=list(DEFAULT.threads), metavar="N")
    made.add_argument("--trials", type=int, default=DEFAULT.trials, metavar="N", help="rounds")
    made.add_argument("--prefill", type=int, default=DEFAULT.prompts[0], metavar="TOKENS")
    made.add_argument("--depths", nargs="+", type=int, default=list(DEFAULT.depths), metavar="TOKENS")
    made.add_argument("--steps", type=int, default=DEFAULT.decode, metavar="TOKENS", help="decode steps after each depth")
    made.add_argument("--positions", type=int, default=quality.POSITIONS, metavar="TOKENS", help="of the text, for KL")
    made.add_argument("--seed", type=int, default=DEFAULT.seed)
    made.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    made.add_argument("--from-json", type=Path, metavar="FILE", help="measure nothing: draw the tables of an earlier run")
    made.add_argument("--prepare", action="store_true", help="make the engines' files and stop")
    made.add_argument("--noisy", action="store_true", help="measure on a busy machine too; the tables are marked")
    return made


def check(arguments: argparse.Namespace) -> None:
    """What the options' types do not say, before hours are spent.

    Raises:
        UsageError: a number below 1, or a file to write in a folder that is not there.
    """
    numbers = [*arguments.threads, arguments.trials, arguments.prefill, *arguments.depths, arguments.steps, arguments.positions]
    if min(numbers) < 1:
        raise UsageError(f"{min(numbers)} is too small", fix="give numbers of 1 or more")
    for name in OUTPUTS:
        file: Path | None = getattr(arguments, name, None)
        if file is not None and not file.parent.is_dir():
            raise UsageError("no such folder", where=file.parent, fix=f"make it, or give --{name} another file")


def run(
    arguments: argparse.Namespace, program: str, admit: Callable[[str, Path], None] = lambda name, source: None
) -> Run | None:
    """Prepare, look whether the machine is quiet, measure: the run, or None where only files were to be made.

    Args:
        program: the module that was called.
        admit: raises where a source cannot be compared; called with its name and path before anything is made of it.

    Raises:
        EdgeError: no such model or peer, a machine that is not quiet, no room.
    """
    settings = Settings(
        threads=tuple(arguments.threads),
        trials=arguments.trials,
        prompts=(arguments.prefill,),
        depths=tuple(arguments.depths),
        decode=arguments.steps,
        seed=arguments.seed,
    )
    engines = peers.choose(arguments.peers)
    seen = quiet.look()
    if quiet.reasons(seen) and not (arguments.noisy or arguments.prepare):
        raise ResourceError(
            f"the machine is not quiet ({'; '.join(quiet.reasons(seen))})",
            fix="wait for it, or give --noisy for figures that mean little",
        )
    models, prepared, left_out = [], [], []
    for name in arguments.models:
        say(f"{name}: the source at float32")
        plain = name.removesuffix(SUFFIX)
        source = real_models.fetch(plain) if plain in real_models.MODELS else Path(plain)
        label = plain if plain in real_models.MODELS else source.stem
        if name != plain:
            source, label = permuted(source), label + SUFFIX
        admit(name, source)
        models.append(open_model(label, source, arguments.positions))
        made, missing = prepare(models[-1], engines, say)
        prepared += made
        left_out += missing
    if arguments.prepare:
        for each in left_out:
            print(f"left out: {each}")
        return None
    called = shlex.join(["python", "-m", program, *sys.argv[1:]])
    return measure(models, prepared, left_out, settings, called, say)


def write(found: Run, text: str, arguments: argparse.Namespace) -> None:
    """Write the run and its tables where they were asked for, and print the tables."""
    if arguments.json and not arguments.from_json:
        result.write(found, arguments.json)
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    print(text)
