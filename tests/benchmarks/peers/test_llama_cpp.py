"""llama.cpp as a peer: its files, and how they are run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers import quality
from edgellm.benchmarks.peers.engine import EngineId
from edgellm.benchmarks.peers.measure import open_model, prepare
from tests.peers import consistent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant", "kind"), [("smollm2", "q4_0", "Q4_0"), ("smollm2", "q8_0", "Q8_0"), ("qwen2.5", "q4_0", "Q4_0")]
)
def test_llama_cpp(
    models: Callable[[str], Path], name: str, variant: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp")
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = open_model(name, models(name), 24)
    (made,), left_out = prepare(model, [EngineId("llama_cpp", variant)], lambda step: None)
    assert left_out == []
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(made.path).tensors}
    ends = {name: kind for name, kind in types.items() if not name.startswith("blk.") and "norm" not in name}
    assert ends == dict.fromkeys(["token_embd.weight", *["output.weight"] * (name == "qwen2.5")], "Q8_0")
    linears = {types[f"blk.{layer}.{part}.weight"] for layer in (0, 7) for part in ("attn_q", "attn_v", "ffn_down", "ffn_up")}
    assert linears == {kind}
    # the file's own weights at float32, by our reader, are what llama.cpp has to compute with
    file_logits = np.load(quality.reference(made.path, model.ids, tmp_path))
    engine = peers.peer("llama_cpp").open_engine(made.path, variant=variant, threads=2, context=64)
    assert quality.compare(file_logits, engine.logits(model.ids)).kl < 0.01
    consistent(engine, model.ids)
    engine.close()
    stamp = made.path.stat().st_mtime_ns
    prepare(model, [made.engine], lambda step: None)
    assert made.path.stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_llama_cpp_without_flash_attention_is_the_same_file(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api: Any = pytest.importorskip("llama_cpp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    variants = ("q4_0", "q4_0-noflash")
    model = open_model("smollm2", models("smollm2"), 24)
    made, _ = prepare(model, [EngineId("llama_cpp", variant) for variant in variants], lambda step: None)
    assert len({each.path for each in made}) == 1
    module = peers.peer("llama_cpp")
    engines = [module.open_engine(made[0].path, variant=variant, threads=1, context=64) for variant in variants]
    flash, plain = (engine.logits(model.ids) for engine in engines)
    assert quality.compare(flash, plain).kl < 0.02
    assert not np.array_equal(flash, plain)  # the other sums round differently
    settings = api.llama_context_default_params()
    assert {settings.type_k, settings.type_v} == {api.GGML_TYPE_F16}
    assert {module.VARIANTS[variant].kv for variant in variants} == {"f16"}
    for engine in engines:
        engine.close()
