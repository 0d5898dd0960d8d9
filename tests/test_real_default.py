"""What a user gets who says nothing: SmolLM2 for both runtimes, calibrated, measured, within its gates and its memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import edgellm
from edgellm.bundle import Bundle

pytestmark = pytest.mark.slow

GRAPHS = ["onnx", "tflite"]


@dataclass(frozen=True)
class Made:
    """A bundle, and the most that its conversion had in memory at once (bytes; None where the system does not tell)."""

    bundle: Bundle
    peak: int | None


# the command itself, and then what the kernel saw it hold; getrusage would tell of the process that this one is forked from
COMMAND = """
import re, sys
from pathlib import Path
from edgellm.cli import cli
cli(["convert", *sys.argv[1:]], standalone_mode=False)
status = Path("/proc/self/status")
print(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1] if status.exists() else "")
"""


@pytest.fixture(scope="module")
def made(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """In a process of its own: in this one texts are short, and nothing is measured."""
    folder = tmp_path_factory.mktemp("default") / "smollm2"
    command = [sys.executable, "-c", COMMAND, str(models("smollm2")), "-o", str(folder), "--target", "both"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = done.stdout.split()[-1]
    return Made(Bundle.open(folder), 1024 * int(peak) if peak.isdigit() else None)


def test_it_stays_within_its_memory(made: Made) -> None:
    assert made.peak is None or made.peak < 1.5e9


def test_the_card_has_every_figure_and_passes(made: Made) -> None:
    card = made.bundle.fidelity
    assert card is not None
    assert list(card.graphs) == GRAPHS
    for name, graph in card.graphs.items():
        assert graph.verdict == "passed", f"{name}: {graph.reason}"
        assert graph.runtime is not None
        assert graph.export is not None
        assert graph.export.kl < 1e-6
        assert graph.run is not None
        assert graph.rounding is not None
        assert graph.rounding.share < 0.7
        assert card.text is not None
        assert graph.rounding.gap.positions == card.text.positions, "a few hundred may hang on one"
        assert graph.activations is not None
        assert graph.activations_expected is not None
        assert graph.activations.kl < 2 * graph.activations_expected.kl


def test_bits_are_where_the_errors_are(made: Made) -> None:
    """Of SmolLM2's linears v has the most to lose for its size."""
    for name in GRAPHS:
        scheme = made.bundle.recipe_of(made.bundle.graphs[name]).scheme("layers.0.v.weight")
        assert scheme is not None
        assert scheme.bits == 8


@pytest.mark.parametrize("runtime", GRAPHS)
def test_it_knows_what_follows(made: Made, runtime: str) -> None:
    with edgellm.load(made.bundle.path, runtime=runtime) as llm:
        text = llm.generate("Monday, Tuesday, Wednesday, Thursday,", max_tokens=12, temperature=0).text
    assert text.startswith(" Friday")  # after that the source itself has " Saturday" and " and" within .02 of each other
