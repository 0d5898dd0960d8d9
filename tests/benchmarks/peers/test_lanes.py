"""Peers as lanes of a run: what users name, made and described."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.benchmarks.peers import lanes as module
from edgellm.benchmarks.peers.lanes import lanes
from edgellm.errors import RuntimeUnavailable, SourceError, UsageError
from tests.peers import ROOT


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_name_is_a_lane_for_every_number_of_threads(tiny_source: Path, cache: Path) -> None:
    found = lanes(["edgellm-onnx:int8", "edgellm_onnx:int4-b64"], tiny_source, [1, 3])
    assert [(lane.engine, lane.runtime, lane.variant, lane.threads) for lane, _ in found] == [
        ("edgellm", "onnx", variant, threads) for variant in ("int8", "int4-b64") for threads in (1, 3)
    ]
    assert len({lane.id for lane, _ in found}) == 4
    assert len({path for _, path in found}) == 2
    assert all(path.is_relative_to(cache) for _, path in found)
    lane, path = found[0]
    assert lane.digest == hashlib.sha256((path / "edgellm.json").read_bytes()).hexdigest()
    assert (lane.quality, lane.failed, lane.source) == (None, None, tiny_source.name)


def test_the_digest_of_a_folder_is_of_its_files_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "one").write_bytes(b"1")
    (folder / "a").write_bytes(b"22")
    each = [hashlib.sha256(content).hexdigest() for content in (b"22", b"1")]
    assert module.digest_of(folder) == hashlib.sha256("".join(each).encode()).hexdigest()
    assert module.digest_of(folder / "a") == each[0]
    (folder / "a").write_bytes(b"23")
    assert module.digest_of(folder) != hashlib.sha256("".join(each).encode()).hexdigest()


def test_one_that_is_missing_stops_before_anything_is_made(
    tiny_source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several, the one that can be had is not converted for minutes first."""
    monkeypatch.setattr("edgellm.benchmarks.peers.llama_cpp.PACKAGES", ("edgellm-test-nowhere",))
    with pytest.raises(RuntimeUnavailable, match=r"edgellm-test-nowhere is not installed; CMAKE_ARGS=.* pip install"):
        lanes(["edgellm-onnx:int8", "llama.cpp"], tiny_source, [1])
    assert list(cache.iterdir()) == []


def test_what_no_peer_reads_and_what_is_no_model(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"OpenVINO GenAI is compared on GGUF sources only"):
        lanes(["openvino:q4_0"], tiny_source, [1])
    with pytest.raises(UsageError, match="no model there"):
        lanes(["edgellm-onnx:int8"], tmp_path, [1])
    with pytest.raises(UsageError, match="no peer is called 'ollama'"):
        lanes(["ollama"], tiny_source, [1])


IMPORTED = """
import sys
from pathlib import Path
from edgellm.benchmarks.peers.lanes import lanes
from edgellm.benchmarks import child, opening
lanes(["edgellm-onnx:int8"], Path(sys.argv[1]), [1])
peers = {"llama_cpp", "openvino", "openvino_genai", "litert_lm", "onnxruntime_genai"}
print(sorted({name.split(".")[0] for name in sys.modules} & peers))
"""


def python(code: str, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_only_what_is_asked_for_is_imported(tiny_source: Path) -> None:
    assert python(IMPORTED, tiny_source) == "[]"
