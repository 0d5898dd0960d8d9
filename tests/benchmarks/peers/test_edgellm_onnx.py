"""Our own bundles among the peers: made once for a source and for the code that made them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.benchmarks.peers import edgellm_onnx


def test_a_bundle_is_made_again_when_the_code_is_another(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = edgellm_onnx.prepare("int4-b32-rtn", tiny_source, tmp_path)
    made = (first / "edgellm.json").stat().st_mtime_ns
    assert edgellm_onnx.prepare("int4-b32-rtn", tiny_source, tmp_path) == first
    assert (first / "edgellm.json").stat().st_mtime_ns == made
    other = edgellm_onnx.prepare("int8", tiny_source, tmp_path)
    monkeypatch.setattr(edgellm_onnx, "_code", lambda: "another")
    again = edgellm_onnx.prepare("int4-b32-rtn", tiny_source, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([again, other]), "what the old code made is gone"
