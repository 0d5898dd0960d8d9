"""Bits per weight, counted in files, against the formats' definitions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants

from edgellm.benchmarks.stored import linears
from edgellm.conversion import convert
from edgellm.errors import BundleError
from tests.gguf_files import save

# of the tiny folder: rows and inputs of q, k, v, o, gate, up, down in each of its two layers
SHAPES = 2 * [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
WEIGHTS = sum(rows * width for rows, width in SHAPES)
SCALES = sum(rows for rows, _ in SHAPES)  # of channels


def write(path: Path, kinds: dict[str, str]) -> Path:
    """A GGUF file with matrices [4, 256] of these types."""
    writer = GGUFWriter(path, "llama")
    for name, kind in kinds.items():
        values = np.random.default_rng(3).normal(size=(4, 256)).astype(np.float32)
        packed = quants.quantize(values, GGMLQuantizationType[kind])
        writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType[kind])
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(256, np.float32))
    save(writer)
    return path


def test_a_gguf_file_is_counted_by_its_blocks(tmp_path: Path) -> None:
    """Q4_0 has 18 bytes for 32 values, Q8_0 34; the embedding, the head and vectors are no linears of a layer."""
    kinds = {"blk.0.attn_q.weight": "Q4_0", "blk.0.ffn_up.weight": "Q8_0", "blk.1.ffn_up.weight": "Q4_0"}
    found = linears(write(tmp_path / "mixed.gguf", {"token_embd.weight": "F32", "output.weight": "F32", **kinds}))
    assert found is not None
    assert found.weights == 3 * 1024
    assert found.bits == found.bits_half == pytest.approx((2 * 18 + 34) * 8 / 96)


@pytest.mark.parametrize(
    ("target", "options", "bits", "half"),
    [
        ("onnx", {"quant": "int4", "block_size": 32}, 4 + (32 + 4) / 32, 4 + (16 + 4) / 32),  # 2 or 4 blocks a row: whole bytes
        ("onnx", {"quant": "int8", "block_size": 64}, 8 + 32 / 64, 8 + 16 / 64),
        ("onnx", {"quant": "fp32"}, 32, 32),
        ("tflite", {"quant": "int4", "block_size": 32}, 4.5, 4.5),
        ("tflite", {"quant": "int4", "block_size": 64}, 4.25, 4.25),
        ("tflite", {"quant": "int8", "block_size": 0}, 8 + 32 * SCALES / WEIGHTS, 8 + 16 * SCALES / WEIGHTS),
        ("tflite", {"quant": "fp32"}, 32, 32),
        ("tflite-compat", {"quant": "int8"}, 8 + 32 * SCALES / WEIGHTS, 8 + 16 * SCALES / WEIGHTS),
        ("tflite-compat", {"quant": "int4", "method": "rtn"}, 4 + 32 * SCALES / WEIGHTS, 4 + 16 * SCALES / WEIGHTS),
        ("tflite-compat", {"quant": "fp32"}, 32, 32),
    ],
)
def test_a_bundle_is_counted_by_its_graph(
    target: str, options: dict[str, Any], bits: float, half: float, tiny_source: Path, tmp_path: Path
) -> None:
    found = linears(convert(tiny_source, tmp_path / "made", target=target, evaluate=False, **options).path)
    assert found is not None
    assert found.weights == WEIGHTS
    assert (found.bits, found.bits_half) == (pytest.approx(bits), pytest.approx(half))


@pytest.mark.parametrize(("target", "block", "layers"), [("onnx", 32, 9 * WEIGHTS), ("tflite", 0, 8 * WEIGHTS + 32 * SCALES)])
def test_what_a_rotated_model_has_besides_costs_bits_but_is_no_weight(
    target: str, block: int, layers: int, tiny_source: Path, tmp_path: Path
) -> None:
    """Before a tied head there is a matrix [64, 64], with one scale of 32 bits a row."""
    source = tmp_path / "tied"
    shutil.copytree(tiny_source, source)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}), encoding="utf-8")
    made = convert(source, tmp_path / "made", target=target, quant="int8", block_size=block, evaluate=False)
    assert made.spec.final_linear
    found = linears(made.path)
    assert found is not None
    assert found.weights == WEIGHTS
    assert found.bits == pytest.approx((layers + 64 * (8 * 64 + 32)) / WEIGHTS)


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_a_graph_that_is_not_its_manifests_is_an_error(target: str, tiny_source: Path, tmp_path: Path) -> None:
    path = convert(tiny_source, tmp_path / "made", target=target, method="rtn", kv="fp32", evaluate=False).path
    manifest = json.loads((path / "edgellm.json").read_text(encoding="utf-8"))
    manifest["spec"]["intermediate_size"] += 32
    (path / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match=f"{WEIGHTS} weights in linears, not {WEIGHTS + 2 * 3 * 64 * 32}"):
        linears(path)


def test_other_files_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").touch()
    assert linears(tmp_path) is None
