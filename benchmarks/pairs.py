"""Runs of one bundle in pairs, one behind the other: how often `edgellm bench compare` says that they differ, and they do not.

    python -m edgellm.benchmarks.pairs smollm2 docs/benchmarks.pairs

Simulated noise has the shape that somebody gave it; this is the noise of a machine. It is to be left alone meanwhile.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from edgellm.benchmarks import script
from edgellm.benchmarks.regression import Comparison, compare
from edgellm.benchmarks.result import Run, Settings, read, write
from edgellm.benchmarks.run import measure
from edgellm.bundle import Bundle
from edgellm.errors import UsageError

SETTINGS = Settings(threads=(1,), prompts=(128,), depths=(0,), decode=32, trials=5)
COLUMNS = ("rows", "no difference", "cannot tell", "better", "regression")


def markdown(folder: Path) -> str:
    """A row for each pair in a folder, the runs being NUMBERa.json and NUMBERb.json.

    Raises:
        UsageError: there is no pair.
    """
    pairs = [(first, first.with_name(f"{first.stem[:-1]}b.json")) for first in sorted(folder.glob("*a.json"))]
    if not pairs:
        raise UsageError("no pairs of runs", where=folder, fix="make them with 'python -m edgellm.benchmarks.pairs'")
    lines = [f"| pair | {' | '.join(COLUMNS)} | against an answer |", f"|---|{'---:|' * len(COLUMNS)}---|"]
    for number, (first, second) in enumerate(pairs, 1):
        outcome = compare(read(first), read(second))
        verdicts = [_verdict(row) for row in outcome.rows]
        counts = (len(verdicts), *(verdicts.count(each) for each in COLUMNS[1:]))
        lines.append(f"| {number} | {' | '.join(map(str, counts))} | {'; '.join(outcome.against) or 'nothing'} |")
    return "\n".join([f"`{read(pairs[0][0]).command}`", "", *lines])


def _verdict(row: Comparison) -> str:
    if row.regression or row.improvement:
        return "regression" if row.regression else "better"
    return "cannot tell" if row.blind or row.ratio.verdict is None else "no difference"


@script.ends
def main() -> None:
    """Measure the pairs, and keep every run."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.benchmarks.pairs", description="Measure one bundle in pairs.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path, help="where the runs go; new")
    parser.add_argument("--runtime", default="onnx")
    parser.add_argument("--pairs", type=int, default=5, metavar="N")
    arguments = parser.parse_args()
    bundle, folder = Bundle.open(arguments.bundle), arguments.folder
    if folder.exists():
        raise UsageError("exists already", where=folder, fix="choose a new folder: runs are not chosen among")
    command = shlex.join(["python", "-m", "edgellm.benchmarks.pairs", *sys.argv[1:]])
    runs: dict[str, Run] = {}
    for name in (f"{number}{side}" for number in range(1, arguments.pairs + 1) for side in "ab"):
        script.say(f"run {name}")
        run = runs[name] = measure([bundle], [arguments.runtime], SETTINGS, command=command)
        if run.doubts:  # which are of the machine, whatever the run found
            raise UsageError(run.doubts[0], where=f"run {name}", fix="nothing is kept; begin again on a quiet machine")
    folder.mkdir(parents=True)
    for name, run in runs.items():
        write(run, folder / f"{name}.json")
    print(markdown(folder))


if __name__ == "__main__":
    sys.exit(main())
