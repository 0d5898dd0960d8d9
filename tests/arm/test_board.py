"""An emulated board behaves as one: its Python starts children, takes its packages from the board, and is known as emulated."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.arm.board import Board

pytestmark = [pytest.mark.arm, pytest.mark.slow]

CHILD = "import json, platform, sys, edgellm; print(json.dumps([platform.machine(), sys.executable, edgellm.__file__]))"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-P', '-c', {CHILD!r}], check=True)"


@pytest.fixture(scope="module")
def pi(make_board: Callable[[str, str], Board]) -> Board:
    return make_board("cortex-a76", "onnx")


def test_a_child_is_on_the_board_too(pi: Board, device_side: Path) -> None:
    for code in (CHILD, PARENT):
        done = pi.run("-c", code)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == ["aarch64", str(pi.python), str(device_side / "edgellm/__init__.py")]


def test_a_shell_finds_its_python(pi: Board, tmp_path: Path) -> None:
    command = ["sh", "-c", f'python3 -c "{CHILD}"']
    done = subprocess.run(command, env=pi.environment(), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)[:2] == ["aarch64", str(pi.python)], done.stderr


def test_its_processor_is_the_one_that_it_plays(pi: Board) -> None:
    code = (
        "import dataclasses, json; from edgellm.benchmarks.machine import machine; "
        "print(json.dumps(dataclasses.asdict(machine())))"
    )
    found: dict[str, Any] = json.loads(pi.run("-c", code).stdout)
    assert found["architecture"] == "aarch64"
    assert found["features"] == ["dotprod", "fp16", "neon"]
    assert found["emulated"] == "aarch64 is emulated on x86 here"


def test_packages_of_this_machine_stay_out(pi: Board) -> None:
    done = pi.run("-c", "import torch", environment={"PYTHONNOUSERSITE": "1"})
    assert done.returncode == 1
    assert "No module named 'torch'" in done.stderr
