"""LiteRT on ARM boards: the same text, and as close to the source; and a refusal where it would end the process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.arm.board import Board
from tests.arm.instructions import DOTPROD, I8MM
from tests.arm.same import Here, Same

pytestmark = [pytest.mark.arm, pytest.mark.slow]
RUNTIME, PACKAGE, LIBRARY = "tflite", "ai_edge_litert", "litert"
KERNELS = {"cortex-a76": {DOTPROD}, "i8mm": {DOTPROD, I8MM}}


class TestTflite(Same):
    pass


def test_on_a_raspberry_pi_4_it_is_refused(here: Here, make_board: Callable[[str, str], Board]) -> None:
    """Where the package's library would say "compiled with lse enabled" and end the process with SIGILL."""
    board = make_board("cortex-a72", "tflite")
    code = "import sys; from edgellm.bundle import Bundle; from edgellm.runtimes import adapters; "
    done = board.run("-c", code + "print(adapters.installed(Bundle.open(sys.argv[1])))", here.jobs["fp32"].bundle)
    assert done.stdout == "{}\n", done.stderr  # so a bundle with two graphs is loaded with the other one
    done = board.run("-m", "edgellm", "run", here.jobs["fp32"].bundle, "Hi")
    assert (done.returncode, done.stdout) == (1, "")
    what = "ai-edge-litert needs ARMv8.1, and this processor has not its atomic instructions"
    assert done.stderr == f"error: {what}; convert the model again with --target onnx, or tflite-compat\n"
    done = board.run("-m", "edgellm", "doctor")
    (line,) = (each for each in done.stdout.splitlines() if each.startswith("ai-edge-litert "))
    assert line.split(maxsplit=1)[1].startswith("not for this processor"), done.stderr
    assert f"- {what}: use ONNX bundles" in done.stdout
