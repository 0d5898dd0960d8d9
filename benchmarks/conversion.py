"""What making a bundle costs: seconds and peak memory of a conversion and of its parts.

    python -m edgellm.benchmarks.conversion smollm2 qwen2.5 gemma3 [--trials 3]

Every figure is of a process of its own, from after its imports to the end of the step; the source lies in the page cache
from the first trial on.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgellm._typed import build
from edgellm.benchmarks import fresh, models, script
from edgellm.benchmarks.fresh import Said
from edgellm.benchmarks.machine import machine, peak_rss

MODULE = "edgellm.benchmarks.conversion"  # whatever it is called while it is a command


@dataclass(frozen=True)
class Cost:
    """Seconds of a step, and the peak resident bytes of its process (None where the system does not tell)."""

    seconds: float
    rss: int | None


def measure(step: str, source: Path, output: Path) -> Cost:
    """Run one of STEPS in a fresh process; `output` must not exist yet.

    Raises:
        EdgeError: as the step met it, or the process died.
    """
    found: list[Cost] = []
    job = {"step": step, "source": str(source), "output": str(output)}
    fresh.run(MODULE, job, lambda said: found.append(build(Cost, said)), where=source)
    return found[0]


def work(asked: Mapping[str, str]) -> Iterator[Said]:
    """What the fresh process does: one step."""
    from edgellm import conversion  # noqa: F401 - imports are not what is measured

    run = STEPS[asked["step"]]
    started = time.perf_counter()
    run(Path(asked["source"]), Path(asked["output"]))
    yield dataclasses.asdict(Cost(time.perf_counter() - started, peak_rss()))


def _convert(target: str, method: str | None, quant: str, source: Path, output: Path) -> None:
    from edgellm.conversion import convert

    convert(source, output, target=target, method=method, quant=quant, evaluate=False)


def _open(source: Path, output: Path) -> None:
    from edgellm.converters.checkpoints import open_checkpoint

    with open_checkpoint(str(source)):
        pass


def _text(source: Path, output: Path) -> None:
    from edgellm.converters.checkpoints import open_checkpoint

    with open_checkpoint(str(source)) as checkpoint:
        checkpoint.text()


def _dequantize(source: Path, output: Path) -> None:
    from edgellm.conversion import DEFAULT_SLICE
    from edgellm.converters.checkpoints import open_checkpoint

    with open_checkpoint(str(source)) as checkpoint:
        for name in checkpoint.names():
            tensor = checkpoint.tensor(name)
            for start, stop in tensor.slices(DEFAULT_SLICE):
                tensor.rows(start, stop)


STEPS: dict[str, Callable[[Path, Path], None]] = {
    "open": _open,
    "tokenizer and template": _text,
    "dequantize, one core": _dequantize,
    "convert to onnx, rtn, int4": partial(_convert, "onnx", "rtn", "int4"),
    "convert to onnx, int4": partial(_convert, "onnx", None, "int4"),
    "convert to onnx, int8": partial(_convert, "onnx", None, "int8"),
    "convert to tflite, rtn, int4": partial(_convert, "tflite", "rtn", "int4"),
    "convert to tflite, int4": partial(_convert, "tflite", None, "int4"),
    "convert to both, rtn, int4": partial(_convert, "both", "rtn", "int4"),
    "convert to both, int4": partial(_convert, "both", None, "int4"),
}


@script.ends
def main() -> None:
    """The command: a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.benchmarks.conversion", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(models.MODELS)}; none is all of them")
    parser.add_argument("--trials", type=int, default=3)
    arguments = parser.parse_args()
    here = machine()
    print(f"{here.cpu}, {here.cores} cores; seconds: best of {arguments.trials} (worst), peak RSS: highest.\n")
    print("| model | step | seconds | peak RSS MB |\n|---|---|---|---|")
    for name in arguments.names or models.MODELS:
        source = models.fetch(name)
        for step in STEPS:
            costs = []
            for _ in range(arguments.trials):
                with tempfile.TemporaryDirectory(prefix="edgellm-conversion-") as scratch:
                    costs.append(measure(step, source, Path(scratch) / "bundle"))
            seconds = sorted(cost.seconds for cost in costs)
            peak = max((cost.rss or 0) for cost in costs) / 1e6
            print(f"| {name} | {step} | {seconds[0]:.2f} ({seconds[-1]:.2f}) | {peak:,.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
