"""What measures on a board: `run.measure`, its progress as JSON lines on standard output, its run as a file.

    python -P -m edgellm.benchmarks.hosts.there run.json < job

Standard input is a line with the job, and then stays open for as long as somebody waits for the result.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm._typed import build
from edgellm.benchmarks.result import Settings, write
from edgellm.benchmarks.run import measure
from edgellm.bundle import Bundle
from edgellm.errors import EdgeError


@dataclass(frozen=True)
class Job:
    """What is to be measured; `bundles` are folders of the board."""

    bundles: tuple[str, ...]
    runtimes: tuple[str, ...]
    settings: Settings
    command: str


def main() -> None:
    """Measure; an error that a user can mend is a line like any other, and status 0 has no run."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # native libraries print what they like

    def say(**said: Any) -> None:
        print(json.dumps(said), file=ours, flush=True)

    job = build(Job, json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_the_other_side, daemon=True).start()
    try:
        bundles = [Bundle.open(path) for path in job.bundles]
        run = measure(bundles, job.runtimes, job.settings, command=job.command, progress=lambda step: say(step=step))
        write(run, Path(sys.argv[1]))
    except EdgeError as error:
        say(refused=error.what, where=error.where, fix=error.fix)
        sys.exit(1)


def as_json(job: Job) -> dict[str, Any]:
    """For `main` of the other machine."""
    return dataclasses.asdict(job)


def _end_with_the_other_side() -> None:
    """Nobody is to measure for nobody: the lane's own process goes too."""
    while os.read(0, 1):  # not by sys.stdin, which the interpreter locks when it ends
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
