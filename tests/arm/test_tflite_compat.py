"""tflite-runtime's last release: on a 32-bit board with Debian's own numpy, and on one of 64 bits that LiteRT refuses."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.arm import asking
from tests.arm.asking import Job, Run
from tests.arm.board import Board

pytestmark = [pytest.mark.arm, pytest.mark.slow]


@pytest.fixture(scope="module")
def asked(learned_jobs: Any) -> dict[str, Job]:
    found: dict[str, Job] = learned_jobs("tflite-compat")
    return found


@pytest.fixture(scope="module", params=["cortex-a7", "cortex-a72"])
def there(request: Any, asked: Any, make_board: Callable[[str, str], Board], tmp_path_factory: Any) -> tuple[str, Run]:
    board = make_board(request.param, "tflite-runtime")
    return request.param, asking.ask(board, asked, Path(tmp_path_factory.mktemp("asked")) / request.param)


def test_it_says_what_onnxruntime_says_here(there: tuple[str, Run], learned_jobs: Any) -> None:
    kind, run = there
    assert run.machine.startswith({"cortex-a7": "armv7", "cortex-a72": "aarch64"}[kind])
    for quant, job in learned_jobs("onnx").items():
        wanted = asking.here(job)
        assert len(wanted.tokens) == job.steps
        assert run.answers[quant].tokens == wanted.tokens, quant
        if quant == "fp32":
            np.testing.assert_allclose(run.answers[quant].logits, wanted.logits, atol=1e-3)


def test_it_says_what_the_same_release_says_here(
    there: tuple[str, Run], asked: Any, compat_python: Path, tmp_path: Path
) -> None:
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps([asdict(job) for job in asked.values()]), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([compat_python, asking.DEVICE, jobs, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text(encoding="utf-8"))
    for number, (quant, tokens) in enumerate(zip(asked, said["tokens"], strict=True)):
        assert there[1].answers[quant].tokens == tokens, quant
        assert asking.divergence(np.load(tmp_path / f"{number}.npy"), there[1].answers[quant].logits) < 1e-4, quant
