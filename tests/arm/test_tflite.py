"""LiteRT on ARM boards: the same text, and as close to the source; and a refusal where it would end the process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.arm import asking, learned
from tests.arm.asking import Answer, Job, Run, agreement, divergence
from tests.arm.board import Board
from tests.arm.instructions import DOTPROD, I8MM

pytestmark = [pytest.mark.arm, pytest.mark.slow]
KERNELS = {"cortex-a76": {DOTPROD}, "i8mm": {DOTPROD, I8MM}}


@dataclass(frozen=True)
class Asked:
    """The jobs, this machine's answers, and what the trimmed model says at float32."""

    jobs: dict[str, Job]
    answers: dict[str, Answer]
    source: Answer


@pytest.fixture(scope="module")
def here(learned_jobs: Any, small_jobs: Any) -> Asked:
    small = small_jobs("tflite")
    jobs = {**learned_jobs("tflite"), "smollm2": small["int4"]}
    return Asked(jobs, {name: asking.here(job) for name, job in jobs.items()}, asking.here(small["fp32"]))


@pytest.fixture(scope="module", params=KERNELS)
def there(request: Any, here: Asked, make_board: Callable[[str, str], Board], tmp_path_factory: Any) -> tuple[str, Run]:
    folder = Path(tmp_path_factory.mktemp("asked")) / request.param
    return request.param, asking.ask(make_board(request.param, "tflite"), here.jobs, folder)


@pytest.mark.parametrize("quant", ["fp32", "int8", "int4"])
def test_the_text_is_the_same(here: Asked, there: tuple[str, Run], quant: str) -> None:
    _, run = there
    ours, theirs = here.answers[quant], run.answers[quant]
    assert run.machine == "aarch64"
    assert len(ours.tokens) == len(learned.TEXT) - len(learned.PROMPT)
    assert theirs.tokens == ours.tokens
    if quant == "fp32":
        np.testing.assert_allclose(theirs.logits, ours.logits, atol=1e-3)
    assert agreement(ours.logits, theirs.logits) >= 0.99
    assert divergence(ours.logits, theirs.logits) < 1e-4


def test_real_weights_of_4_bits_are_as_close_to_their_source(here: Asked, there: tuple[str, Run]) -> None:
    ours, theirs = here.answers["smollm2"].logits, there[1].answers["smollm2"].logits
    assert agreement(ours, theirs) >= 0.9
    assert divergence(here.source.logits, theirs) < 1.1 * divergence(here.source.logits, ours)


def test_the_kernels_are_this_processor_s(there: tuple[str, Run]) -> None:
    kind, run = there
    assert {extension for extension, _ in run.instructions} == KERNELS[kind], run.instructions
    assert all("litert" in file.lower() for _, file in run.instructions)
    assert run.blocks > 10_000


def test_little_is_imported(there: tuple[str, Run]) -> None:
    assert {"ai_edge_litert", "numpy", "tokenizers"} <= there[1].modules
    assert {"onnxruntime", "onnx", "torch", "click", "rich"} & there[1].modules == set()


def test_on_a_raspberry_pi_4_it_is_refused(here: Asked, make_board: Callable[[str, str], Board]) -> None:
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
