"""Measuring in a process of its own: what runs beside a model, or ran before it, is in the peak RSS of the process.

The child says what it does in JSON lines on its standard output, which it first moves out of the way of native libraries:
the name of each case, then the report, or the error that a user can mend.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgellm import errors
from edgellm._typed import build
from edgellm.benchmarks.harness import Report, Settings, measure
from edgellm.bundle import Bundle
from edgellm.errors import EdgeError, InferenceError
from edgellm.runtimes import open_runtime

CHILD = "import sys; from edgellm.benchmarks.apart import child; child(sys.argv[1])"
INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """What the fresh process is to do: measure, or without settings just load."""

    path: str
    settings: Settings | None
    runtime: str | None
    threads: int | None


def measure_apart(
    path: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda case: None,
) -> Report:
    """`edgellm.benchmarks.harness.measure`, in a fresh process.

    Another one loads the model before: what a runtime packs for this machine at its first load is not in the figures.

    Raises:
        EdgeError: as `measure`.
        InferenceError: the process died.
    """
    progress("the first load")
    _run(Job(os.fspath(path), None, runtime, threads), progress)
    report = _run(Job(os.fspath(path), settings or Settings(), runtime, threads), progress)
    if report is None:
        raise InferenceError("the process that measured it said nothing", where=path, fix="try again")
    return report


def _run(job: Job, progress: Callable[[str], None]) -> Report | None:
    quiet = subprocess.DEVNULL
    stderr = quiet if sys.stderr is None else None
    # -P: no module from the folder where the user stands, which may be a bundle that somebody else made
    command = [sys.executable, "-P", "-c", CHILD, json.dumps(dataclasses.asdict(job))]
    with subprocess.Popen(command, stdin=quiet, stdout=subprocess.PIPE, stderr=stderr, encoding="utf-8") as process:
        try:
            report = _listen(process.stdout, progress)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        what = f"the process that measured it ended with status {process.returncode}"
        raise InferenceError(what, where=job.path, fix="free memory and try again")
    return report


def _listen(lines: IO[str] | None, progress: Callable[[str], None]) -> Report | None:
    report = None
    for line in lines or ():
        said = json.loads(line)
        if "case" in said:
            progress(said["case"])
        elif "error" in said:
            kind = getattr(errors, said["error"])
            raise kind(said["what"], where=said["where"], fix=said["fix"])
        else:
            report = build(Report, said["report"])
    return report


def child(asked: str) -> None:
    """What the fresh process does."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open("wb") as sink:
        os.dup2(sink.fileno(), 1)

    def say(**said: Any) -> None:
        print(json.dumps(said), file=ours, flush=True)

    job = build(Job, json.loads(asked))
    try:
        if job.settings is None:
            bundle = Bundle.open(job.path)
            bundle.ensure_verified()
            open_runtime(bundle, name=job.runtime, threads=job.threads, max_context=1).close()
        else:
            report = measure(
                job.path,
                job.settings,
                runtime=job.runtime,
                threads=job.threads,
                progress=lambda case: say(case=case),
            )
            say(report=dataclasses.asdict(report))
    except EdgeError as error:
        say(error=type(error).__name__, what=error.what, where=error.where, fix=error.fix)
    except KeyboardInterrupt:  # it reached the parent too, which says so
        sys.exit(INTERRUPTED)
