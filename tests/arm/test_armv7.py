"""A 32-bit board: tflite-runtime's last release, Debian's own numpy, and bundles of the compat export."""

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

from edgellm.conversion import convert
from tests.arm import asking
from tests.arm.asking import Job, Run, ids
from tests.arm.board import Board
from tests.arm.conftest import PROMPT

pytestmark = [pytest.mark.arm, pytest.mark.slow]
QUANTS = ("fp32", "int8", "int4")


@pytest.fixture(scope="module")
def asked(emulation: None, tiny_source: Path, tmp_path_factory: Any) -> dict[str, Job]:
    folder = tmp_path_factory.mktemp("compat")
    bundles = {quant: convert(tiny_source, folder / quant, quant=quant, target="tflite-compat") for quant in QUANTS}
    return {quant: Job(str(made.path), "tflite-compat", PROMPT, 48, tuple(ids(160, 3, 259))) for quant, made in bundles.items()}


@pytest.fixture(scope="module")
def there(asked: Any, make_board: Callable[[str, str], Board], tmp_path_factory: Any) -> Run:
    board = make_board("cortex-a7", "tflite-runtime")
    return asking.ask(board, asked, Path(tmp_path_factory.mktemp("asked")) / "armv7")


def test_float32_says_what_onnxruntime_says_here(there: Run, tiny_source: Path, tmp_path: Path) -> None:
    bundle = convert(tiny_source, tmp_path / "onnx", quant="fp32")
    wanted = asking.here(Job(str(bundle.path), "onnx", PROMPT, 48, tuple(ids(160, 3, 259))))
    assert there.machine.startswith("armv7")
    assert len(wanted.tokens) == 48
    assert there.answers["fp32"].tokens == wanted.tokens
    np.testing.assert_allclose(there.answers["fp32"].logits, wanted.logits, atol=1e-3)


def test_it_says_what_the_same_release_says_here(there: Run, asked: Any, compat_python: Path, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps([asdict(job) for job in asked.values()]), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([compat_python, asking.DEVICE, jobs, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text(encoding="utf-8"))
    for number, (quant, tokens) in enumerate(zip(QUANTS, said["tokens"], strict=True)):
        assert there.answers[quant].tokens == tokens, quant
        np.testing.assert_allclose(there.answers[quant].logits, np.load(tmp_path / f"{number}.npy"), atol=1e-3, err_msg=quant)
