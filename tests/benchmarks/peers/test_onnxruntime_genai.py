"""onnxruntime-genai as a peer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers import quality
from edgellm.benchmarks.peers.engine import EngineId
from edgellm.benchmarks.peers.measure import open_model, prepare
from tests.peers import consistent


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["int4", "int4-head8"])
def test_onnxruntime_genai(tiny_source: Path, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_genai")
    pytest.importorskip("onnx_ir")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = open_model("tiny", tiny_source, 24)
    (made,), left_out = prepare(model, [EngineId("onnxruntime_genai", variant)], lambda step: None)
    assert left_out == []
    engine = peers.peer("onnxruntime_genai").open_engine(made.path, variant=variant, threads=1, context=64)
    found = quality.compare(np.load(model.reference), engine.logits(model.ids))
    assert found.kl < 0.5
    assert len(found.divergences) == 24
    consistent(engine, model.ids)
    engine.close()
