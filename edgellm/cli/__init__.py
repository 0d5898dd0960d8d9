"""The `edgellm` command.

A subcommand is one file of this folder, found by its name, whose `command` is a click command; what a command needs is
imported when it runs, so `edgellm --help` stays fast. Every error that a user can cause is one line on stderr.

Exit status: 0 done, 1 an error, 2 a wrong argument, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import pkgutil
import signal
import sys
from types import FrameType
from typing import Any

import click

from edgellm._version import __version__
from edgellm.errors import EdgeError, UsageError, plain

INTERRUPTED = 130
EXTRAS = {
    "onnx": "edgellm[convert]",
    "huggingface_hub": "edgellm[convert]",
    "onnxruntime": "edgellm[onnx]",
    "ai_edge_litert": "edgellm[tflite]",
    "tflite_runtime": "edgellm[tflite-runtime]",
    "litert_lm_builder": "edgellm[litertlm]",
    "pyfastcdc": "edgellm[update]",
    "model_signing": "edgellm[sign]",
    "asyncssh": "edgellm[ssh]",
}


class Commands(click.Group):
    """Subcommands by file name, and what a user sees when one fails."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The files of this folder, private ones (`_x.py`) left out."""
        return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of one file, or None."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"{__name__}.{cmd_name}").command
        return command if isinstance(command, click.Command) else None

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; errors become one line and an exit status."""
        try:
            return super().invoke(ctx)
        except EdgeError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2 if isinstance(error, UsageError) else 1)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("", "edgellm"):
                raise
            install = EXTRAS.get(package, "edgellm")
            click.echo(f"error: the package '{package}' is not installed; pip install '{install}'", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgellm")
def cli() -> None:
    """Convert open language models to edge bundles, run them, measure them."""


def main() -> None:
    """Entry point of the console script: never dies of a character that the console cannot show."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A pipe or file gets UTF-8 whatever the system's code page is; a terminal keeps what it can display.
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # no SIGHUP on Windows; under nohup it is ignored, and stays so
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)
    try:
        cli()
    except KeyboardInterrupt:  # while importing, before a command runs
        sys.exit(INTERRUPTED)
    except MemoryError:
        _fail("out of memory; close programs, or use a smaller model")
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        _fail(f"{name}{error.strerror or error}")


def _terminate(number: int, frame: FrameType | None) -> None:
    """A request to end lets the command clear away what it began, as an error would."""
    sys.exit(128 + number)


def _fail(text: str) -> None:
    click.echo(f"error: {plain(text)}", err=True)
    sys.exit(1)
