"""A process of its own, so that no measurement finds what another one left: it is told a job, and answers line by line.

    run("edgellm.benchmarks.turn", {"path": "smollm2", "how": {"runtime": "onnx"}}, print, where="smollm2")

The module that is named has a function `work`, which gets the job as JSON gives it back and yields answers. Job and answers are
what JSON can hold.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgellm import errors
from edgellm.errors import EdgeError, InferenceError

Said = dict[str, Any]

# Ctrl-C reaches the parent too, which ends this process; it is not to die half-way in an import, with a traceback.
CHILD = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    "hasattr(signal, 'pthread_sigmask') and signal.pthread_sigmask(signal.SIG_SETMASK, []);"
    "from edgellm.benchmarks.fresh import answer; answer(*sys.argv[1:])"
)
ERROR = "error"  # the name that no answer may have


def run(module: str, job: Mapping[str, Any], hear: Callable[[Said], None], *, where: str | os.PathLike[str]) -> None:
    """Have a module do a job in a fresh process; `hear` gets each answer when it is given.

    Whatever `hear` raises, Ctrl-C included, ends the process.

    Args:
        where: what the job is about, as an error names it.

    Raises:
        EdgeError: as the process met it.
        InferenceError: the process died.
    """
    # -P: no module from the folder where the user stands, which may be a bundle that somebody else made
    command = [sys.executable, "-P", "-c", CHILD, module, json.dumps(job)]
    quiet = subprocess.DEVNULL
    stderr = quiet if sys.stderr is None else None
    with contextlib.ExitStack() as stack:
        with _held():
            process = subprocess.Popen(command, stdin=quiet, stdout=subprocess.PIPE, stderr=stderr, encoding="utf-8")
            stack.enter_context(process)
            stack.push(lambda kind, error, trace: None if kind is None else process.kill())
        for line in process.stdout or ():
            said = json.loads(line)
            if ERROR in said:
                raise getattr(errors, said[ERROR])(said["what"], where=said["where"], fix=said["fix"])
            hear(said)
    if process.returncode:
        what = f"the process that measured it ended with status {process.returncode}"
        raise InferenceError(what, where=where, fix="free memory and try again")


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """Signals that end this process wait: in the middle of starting another one, nobody would know whom to end with it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def answer(module: str, asked: str) -> None:
    """What the fresh process does: its standard output is for answers, so native libraries get none."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open("wb") as sink:
        os.dup2(sink.fileno(), 1)

    def say(said: Said) -> None:
        print(json.dumps(said), file=ours, flush=True)

    try:
        for said in importlib.import_module(module).work(json.loads(asked)):
            say(said)
    except EdgeError as error:
        say({ERROR: type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix})
