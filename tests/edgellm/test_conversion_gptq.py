"""Conversion by GPTQ: bundles of it run, say so, and depend on the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.bundle import Bundle, cache_dir
from edgellm.converters import preparation
from edgellm.runtimes import open_runtime


@pytest.fixture(autouse=True)
def short_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preparation, "HESSIAN_TOKENS", 300)
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))


def logits(bundle: Bundle, graph: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    runtime = open_runtime(bundle, name=graph, threads=1)
    session = runtime.session()
    found = session.logits(list(range(5, 25)))
    session.close()
    runtime.close()
    return np.asarray(found)


def test_one_run_settles_both_graphs(tiny_source: Path, tmp_path: Path) -> None:
    """Each graph of `both` is that of a conversion of its own, and not what rounding to nearest makes."""
    both = edgellm.convert(tiny_source, tmp_path / "both", target="both", method="gptq", kv="fp32")
    assert both.recipe.method == "gptq"
    assert both.recipe.calibration
    for graph in ("onnx", "tflite"):
        alone = edgellm.convert(tiny_source, tmp_path / graph, target=graph, method="gptq", kv="fp32")
        rounded = edgellm.convert(tiny_source, tmp_path / f"{graph}-rtn", target=graph, method="rtn", kv="fp32")
        np.testing.assert_array_equal(logits(both, graph), logits(alone, graph))
        assert not np.array_equal(logits(alone, graph), logits(rounded, graph))
    assert not list((cache_dir() / "shelves").iterdir())


def test_the_text_has_a_say(tiny_source: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("the quick brown fox jumps over the lazy dog 0123456789 " * 20)
    usual = edgellm.convert(tiny_source, tmp_path / "usual", method="gptq")
    own = edgellm.convert(tiny_source, tmp_path / "own", method="gptq", calibration=tmp_path / "own.txt")
    assert usual.recipe.calibration != own.recipe.calibration
    assert not np.array_equal(logits(usual, "onnx"), logits(own, "onnx"))
    none = edgellm.convert(tiny_source, tmp_path / "none", calibration="none")
    assert none.recipe.method == "rtn"
    assert none.recipe.calibration is None
