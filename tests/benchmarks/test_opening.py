"""A load imports nothing: what an engine needs is imported, and timed, before it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm.benchmarks.peers.engine import EngineId
from edgellm.benchmarks.peers.measure import open_model, prepare
from tests.peers import ROOT

LATE = """
import sys
from pathlib import Path
from edgellm.benchmarks import opening
from edgellm.benchmarks.peers.engine import EngineId
from edgellm.benchmarks.peers.lanes import describe

peer, variant, file = sys.argv[1:]
path = Path(file)
(lane,) = describe(EngineId(peer, variant), path, "model", path, [1])
opening.prepare(lane, path)
opening.import_code(lane)
before = set(sys.modules)
opening.open_lane(lane, path, 32).engine.close()
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
        pytest.skip(left_out[0])
    assert imported_late(peer, variant, made[0].path) == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(("peer", "variant"), [("llama_cpp", "q8_0"), ("openvino_genai", "q8_0")])
def test_a_load_of_a_gguf_imports_nothing(
    peer: str, variant: str, models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, left_out = prepare(open_model("smollm2", models("smollm2"), 8), [EngineId(peer, variant)], lambda step: None)
    if left_out:
        pytest.skip(left_out[0])
    assert imported_late(peer, variant, made[0].path) == "[]"
