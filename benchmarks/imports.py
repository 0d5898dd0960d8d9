"""What imports cost on this machine: milliseconds, each in fresh processes, with the files in memory.

    python -m edgellm.benchmarks.imports [--trials 9]

A row's time is its own: what the row needs of the rows above is imported before the clock starts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from edgellm.benchmarks import own
from edgellm.benchmarks.machine import machine

CHILD = """
import importlib, json, sys, time
before, names = json.loads(sys.argv[1])
for name in before:
    importlib.import_module(name)
begin = time.perf_counter()
for name in names:
    importlib.import_module(name)
print(time.perf_counter() - begin)
"""


@dataclass(frozen=True)
class Row:
    """Something that is imported.

    Attributes:
        what: as the table calls it.
        names: modules whose import is timed.
        before: modules that are there already.
    """

    what: str
    names: tuple[str, ...]
    before: tuple[str, ...] = ()


FACE = ("edgellm.llm", "edgellm.tokenizer", "edgellm.runtimes")
ROWS = (
    Row("import edgellm", ("edgellm",)),
    Row("numpy", ("numpy",)),
    Row("what edgellm.load needs beside, tokenizers in it", FACE, ("edgellm", "numpy")),
    Row("Jinja2, at the first chat", ("jinja2.sandbox",), FACE),
    *(Row(f"{name}: {names[-1].split('.')[0]}", names, FACE) for name, names in own.IMPORTS.items()),
    Row("the command line", ("edgellm.cli",)),
)


def is_installed(row: Row) -> bool:
    """Whether all of its packages are."""
    return all(importlib.util.find_spec(name.split(".")[0]) is not None for name in row.names)


def measure(row: Row, trials: int) -> list[float]:
    """Milliseconds of so many processes, fastest first; one before them warms the files.

    Raises:
        subprocess.CalledProcessError: an import fails.
    """
    return sorted([_once(row) for _ in range(trials + 1)][1:])


def _once(row: Row) -> float:
    command = [sys.executable, "-P", "-c", CHILD, json.dumps([row.before, row.names])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1]) * 1000


def table(times: Sequence[tuple[str, Sequence[float]]]) -> str:
    """As Markdown; each with its times in order, fastest first."""
    lines = ["| import | best, ms | median | worst |", "|---|---|---|---|"]
    for what, each in times:
        lines.append(f"| {what} | {each[0]:.1f} | {median(each):.1f} | {each[-1]:.1f} |")
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.benchmarks.imports", description=__doc__)
    parser.add_argument("--trials", type=int, default=9, metavar="N", help="processes that count, of each row")
    arguments = parser.parse_args()
    if arguments.trials < 1:
        parser.error("--trials is at least 1")
    rows = [row for row in ROWS if is_installed(row)]
    here = machine()
    if here.emulated:
        print(f"no figures: {here.emulated}", file=sys.stderr)
        return 1
    print(f"{here.cpu}, {here.python}, {arguments.trials} processes each\n")
    print(table([(row.what, measure(row, arguments.trials)) for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
