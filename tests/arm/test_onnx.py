"""onnxruntime on ARM boards: the same tokens in float32, and as close to the source with weights of 4 and 8 bits.

Its integer kernels round in ways of their own on each class of processors, so tokens may differ where two are nearly as likely:
what counts is the distance from the source, and that hardly any token changes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.conversion import convert
from tests.arm import asking
from tests.arm.asking import Answer, Job, Run, agreement, divergence
from tests.arm.board import Board
from tests.arm.instructions import DOTPROD, I8MM

pytestmark = [pytest.mark.arm, pytest.mark.slow]
KINDS = ("cortex-a72", "cortex-a76", "i8mm")


@pytest.fixture(scope="module")
def here(jobs: Any) -> dict[str, tuple[Job, Answer]]:
    return {name: (job, asking.here(job)) for name, job in jobs("onnx").items()}


@pytest.fixture(scope="module")
def sources(here: Any, small_model: Path, tmp_path_factory: Any) -> dict[str, Answer]:
    """What the models say at float32, on this machine."""
    job, tiny = here["smollm2 int4"][0], here["tiny fp32"][1]
    exact = convert(small_model, Path(tmp_path_factory.mktemp("exact")) / "smollm2", quant="fp32")
    return {"tiny": tiny, "smollm2": asking.here(Job(str(exact.path), "onnx", job.prompt, job.steps, job.ids))}


@pytest.fixture(scope="module", params=KINDS)
def there(request: Any, here: Any, make_board: Callable[[str, str], Board], tmp_path_factory: Any) -> tuple[str, Run]:
    board = make_board(request.param, "onnx")
    asked = {name: job for name, (job, _) in here.items()}
    return request.param, asking.ask(board, asked, Path(tmp_path_factory.mktemp("asked")) / request.param)


def test_float32_says_the_same(here: Any, there: tuple[str, Run]) -> None:
    _, run = there
    assert run.machine == "aarch64"
    job, answer = here["tiny fp32"]
    assert len(answer.tokens) == job.steps
    assert run.answers["tiny fp32"].tokens == answer.tokens
    np.testing.assert_allclose(run.answers["tiny fp32"].logits, answer.logits, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny int8", "tiny int4", "smollm2 int8", "smollm2 int4"])
def test_rounded_it_is_as_close_to_the_source(here: Any, sources: Any, there: tuple[str, Run], name: str) -> None:
    _, run = there
    source, ours, theirs = sources[name.split()[0]].logits, here[name][1].logits, run.answers[name].logits
    assert agreement(ours, theirs) >= 0.95
    assert divergence(source, theirs) < 1.1 * divergence(source, ours)


def test_the_kernels_are_this_processor_s(there: tuple[str, Run]) -> None:
    kind, run = there
    kinds = {extension for extension, _ in run.instructions}
    assert kinds == {"cortex-a72": set(), "cortex-a76": {DOTPROD}, "i8mm": {DOTPROD, I8MM}}[kind], run.instructions


def test_little_is_imported(there: tuple[str, Run]) -> None:
    assert {"onnxruntime", "numpy", "tokenizers"} <= there[1].modules
    assert {"ai_edge_litert", "onnx", "torch", "click", "rich"} & there[1].modules == set()
