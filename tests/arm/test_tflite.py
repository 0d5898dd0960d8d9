"""LiteRT on ARM boards: bundles that were converted here say the same there, token for token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.arm import asking
from tests.arm.asking import Answer, Job, Run
from tests.arm.board import Board
from tests.arm.instructions import DOTPROD, I8MM

pytestmark = [pytest.mark.arm, pytest.mark.slow]
KINDS = ("cortex-a72", "cortex-a76", "i8mm")
LIBRARY = "libLiteRt.so"


@pytest.fixture(scope="module")
def here(jobs: Any) -> dict[str, tuple[Job, Answer]]:
    return {name: (job, asking.here(job)) for name, job in jobs("tflite").items()}


@pytest.fixture(scope="module", params=KINDS)
def there(request: Any, here: Any, make_board: Callable[[str, str], Board], tmp_path_factory: Any) -> tuple[str, Run]:
    board = make_board(request.param, "tflite")
    asked = {name: job for name, (job, _) in here.items()}
    return request.param, asking.ask(board, asked, Path(tmp_path_factory.mktemp("asked")) / request.param)


def test_tokens_are_the_same(here: Any, there: tuple[str, Run]) -> None:
    _, run = there
    assert run.machine == "aarch64"
    for name, (job, answer) in here.items():
        assert len(answer.tokens) == job.steps
        assert run.answers[name].tokens == answer.tokens, name
        np.testing.assert_array_equal(run.answers[name].logits.argmax(-1), answer.logits.argmax(-1), err_msg=name)


def test_the_kernels_are_this_processor_s(there: tuple[str, Run]) -> None:
    kind, run = there
    kinds = {extension for extension, _ in run.instructions}
    assert kinds == {"cortex-a72": set(), "cortex-a76": {DOTPROD}, "i8mm": {DOTPROD, I8MM}}[kind], run.instructions


def test_little_is_imported(there: tuple[str, Run]) -> None:
    assert {"ai_edge_litert", "numpy", "tokenizers"} <= there[1].modules
    assert {"onnxruntime", "onnx", "torch", "click", "rich"} & there[1].modules == set()
