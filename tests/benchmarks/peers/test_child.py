"""What a child process does: an engine's own loop, and loads that import nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgellm.benchmarks.peers.child import Job, _speed
from edgellm.benchmarks.peers.engine import EngineId
from edgellm.benchmarks.peers.measure import open_model, prepare
from tests.peers import ROOT


class Loop:
    """An engine that is asked for tokens; its clock is known."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def time_prefill(self, ids: list[int]) -> float:
        self.asked.append((len(ids), 0))
        return [9.0, 2.0, 4.0][len(self.asked) - 1]

    def time_steps(self, ids: list[int], steps: int) -> list[float]:
        self.asked.append((len(ids), steps))
        return [5.0, *[0.1] * (steps - 1)]


def test_an_engine_with_a_loop_of_its_own_is_timed_by_that() -> None:
    loop: Any = Loop()
    figures = _speed(loop, Job("speed", "it", "q", "", 1, [7, 8, 9], prefill=12, depths=(4, 8), steps=6))
    assert figures == {"prefill_12": 4.5, "decode_4": pytest.approx(10), "decode_8": pytest.approx(10)}  # of 6 and 3
    assert loop.asked == [(12, 0)] * 3 + [(4, 6), (8, 6)]


LATE = """
import sys
from pathlib import Path
from edgellm.benchmarks.peers.child import load_code

peer, variant, path = sys.argv[1:]
module = load_code(peer)
before = set(sys.modules)
module.open_engine(Path(path), variant=variant, threads=1, context=32).close()
print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names))
"""


def imported_late(peer: str, variant: str, path: Path) -> str:
    """Modules that a load imports, although their import is timed apart from it."""
    command = [sys.executable, "-c", LATE, peer, variant, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("peer", "variant"),
    [
        ("edgellm_onnx", "int8"),
        ("edgellm_tflite", "int8"),
        pytest.param("onnxruntime_genai", "int4", marks=pytest.mark.slow),
    ],
)
def test_a_load_imports_nothing(
    peer: str, variant: str, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, left_out = prepare(open_model("tiny", tiny_source, 8), [EngineId(peer, variant)], lambda step: None)
    if left_out:
        pytest.skip(left_out[0]["reason"])
    assert imported_late(peer, variant, made[0].path) == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(("peer", "variant"), [("llama_cpp", "q8_0"), ("openvino_genai", "q8_0")])
def test_a_load_of_a_gguf_imports_nothing(
    peer: str, variant: str, models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, left_out = prepare(open_model("smollm2", models("smollm2"), 8), [EngineId(peer, variant)], lambda step: None)
    if left_out:
        pytest.skip(left_out[0]["reason"])
    assert imported_late(peer, variant, made[0].path) == "[]"
