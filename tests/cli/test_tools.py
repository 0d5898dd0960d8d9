"""inspect, verify, doctor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgellm.bundle import Bundle
from edgellm.converters.recipes import METHODS
from edgellm.runtimes.preference import remember
from tests import packed_folder, tiny_folder
from tests.cli.conftest import edgellm


def test_inspect_says_what_a_bundle_is(bundle: Path) -> None:
    value = json.loads(edgellm("inspect", bundle, "--json").stdout)
    assert (value["kind"], value["license"], value["spec"]["architecture"]) == ("bundle", "mit", "llama")
    assert value["files"] == {file.name: file.stat().st_size for file in bundle.iterdir() if file.name != "edgellm.json"}
    graph = (bundle / "model.onnx").stat().st_size + (bundle / "model.onnx.data").stat().st_size
    assert value["weights"] == {"onnx": graph}
    assert value["details"]["recipe"] == "int4"

    per_token = 2 * 2 * 2 * 16 * 4  # keys and values, layers, KV heads, channels, bytes of a float32
    assert [row["context"] for row in value["memory"]] == [512, 1024, 2048, 4096]
    for row in value["memory"]:
        assert row["kv"] == {"onnx": per_token * row["context"]}
        assert row["total"] == {"onnx": graph + row["kv"]["onnx"]}
        assert row["fits"]["onnx"] in (True, None)


def test_inspect_shows_both_graphs(both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path))
    value = json.loads(edgellm("inspect", both, "--json").stdout)
    size = {file.name: file.stat().st_size for file in both.iterdir()}
    assert value["weights"] == {"onnx": size["model.onnx"] + size["model.onnx.data"], "tflite": size["model.tflite"]}
    for row in value["memory"]:
        assert row["total"] == {name: weights + row["kv"][name] for name, weights in value["weights"].items()}
        assert row["kv"]["tflite"] == 2 * 2 * 2 * 16 * row["context"], "a byte a value"
    text = edgellm("inspect", both).stdout
    tables = f"(tensors: 2); by {METHODS['int4']}"
    assert f"\nonnx        4 bits in blocks of 32 with zero points (tensors: 14); 8 bits in blocks of 64 {tables}\n" in text
    assert f"\ntflite      4 bits in blocks of 32 (tensors: 14); 8 bits a scale a row {tables}; cache in 8 bits\n" in text
    assert "\ndefault     onnx; none is measured here, 'edgellm bench' finds the fastest\n" in text
    remember(Bundle.open(both), {"onnx": 10.0, "tflite": 12.5})
    text = edgellm("inspect", both).stdout
    assert "\ndefault     tflite; it decodes 12.5 tokens/s here, onnx 10.0 ('edgellm bench')\n" in text


def test_inspect_says_how_each_tensor_is_stored(tmp_path: Path) -> None:
    """Of a source that is quantized already and of the bundle it becomes: what is carried over is called so."""
    folder = tiny_folder.write(tmp_path / "source")
    packed_folder.pack(folder, "awq", 32)
    (tmp_path / "r.toml").write_text('[[rule]]\ntensors = "v"\nlayers = 1\nbits = 32\n', encoding="utf-8")
    assert edgellm("convert", folder, "-o", tmp_path / "out", "--recipe", tmp_path / "r.toml").exit_code == 0
    source = json.loads(edgellm("inspect", folder, "--json").stdout)
    bundle = json.loads(edgellm("inspect", tmp_path / "out", "--json").stdout)
    imported = {"bits": 4, "block": 32, "symmetric": False, "method": "imported", "activations": 8}
    table = {"bits": 8, "block": 64, "symmetric": True, "method": METHODS["int4"], "activations": 8}
    plain = {"bits": 32, "block": None, "symmetric": None, "method": None, "activations": 32}
    linears = [f"layers.{layer}.{name}.weight" for layer in (0, 1) for name in ("q", "k", "v", "o", "gate", "up", "down")]
    wanted = {"embed.weight": table, **dict.fromkeys(linears, imported), "head.weight": table}
    assert source["tensors"]["int4"] == wanted
    by = {"method": Bundle.open(tmp_path / "out").recipe.method}
    wanted |= {"layers.1.v.weight": plain, "embed.weight": table | by, "head.weight": table | by}
    assert bundle["tensors"] == {"onnx": wanted}
    text = edgellm("inspect", tmp_path / "out").stdout
    assert "4 bits in blocks of 32 with zero points, imported (tensors: 13)" in text


def test_what_a_source_would_take_is_what_its_bundles_take(source: Path, bundle: Path, tmp_path: Path) -> None:
    value = json.loads(edgellm("inspect", source, "--json").stdout)
    assert (value["kind"], value["license"], value["files"]) == ("source", "mit", {})
    assert value["weights"]["int4"] == (bundle / "model.onnx.data").stat().st_size
    for quant in ("int8", "fp32"):
        assert edgellm("convert", source, "-o", tmp_path / quant, "--quant", quant).exit_code == 0
        assert value["weights"][quant] == (tmp_path / quant / "model.onnx.data").stat().st_size
    of_bundle = json.loads(edgellm("inspect", bundle, "--json").stdout)
    assert value["spec"] == of_bundle["spec"]
    for row, other in zip(value["memory"], of_bundle["memory"], strict=True):
        assert row["kv"] == dict.fromkeys(("int4", "int8", "fp32"), other["kv"]["onnx"])


def test_inspect_for_people(source: Path, bundle: Path) -> None:
    for model, kind in ((source, "source"), (bundle, "bundle")):
        result = edgellm("inspect", model)
        assert result.exit_code == 0, result.output
        assert f"{kind:<11} tiny-llama\n" in result.stdout
        assert "4 heads, 2 KV heads, head size 16" in result.stdout
        assert "4,096" in result.stdout


def test_a_model_that_is_too_large_is_said_to_be(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.cli.inspect import _of_bundle

    facts = _of_bundle(Bundle.open(bundle))
    needed = facts.fits(None)[1]["total"]["onnx"]
    assert [row["fits"]["onnx"] for row in facts.fits(needed)] == [True, True, False, False]
    assert {row["fits"]["onnx"] for row in facts.fits(None)} == {None}


@pytest.mark.slow
def test_inspect_of_a_real_gguf(models: Callable[[str], Path]) -> None:
    value = json.loads(edgellm("inspect", models("qwen2.5"), "--json").stdout)
    assert value["spec"]["architecture"] == "qwen2"
    assert len(value["spec"]["layers"]) == 24
    values = sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(models("qwen2.5")).tensors)
    assert 4 * values <= value["weights"]["fp32"] < 4 * values * 1.01  # and some constants of the graph
    assert value["weights"]["int4"] < value["weights"]["int8"] < value["weights"]["fp32"]


def test_verify(bundle: Path, tmp_path: Path) -> None:
    result = edgellm("verify", bundle)
    assert result.exit_code == 0
    assert result.stdout.endswith(" all as converted\n")

    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    data = np.fromfile(damaged / "model.onnx.data", np.uint8)
    data[len(data) // 2] ^= 1
    data.tofile(damaged / "model.onnx.data")
    result = edgellm("verify", damaged)
    assert (result.exit_code, result.stdout) == (1, "")
    assert str(damaged / "model.onnx.data") in result.stderr

    (damaged / "tokenizer.json").unlink()
    assert "file is missing" in edgellm("verify", damaged).stderr


def test_doctor_knows_this_machine() -> None:
    result = edgellm("doctor")
    assert result.exit_code == 0
    import onnxruntime

    assert f"onnxruntime      {onnxruntime.__version__}" in result.stdout
    assert "\nai-edge-litert   " in result.stdout
    for line in ("edgellm", "system", "cpu", "cpu features", "threads", "memory", "cache"):
        assert f"\n{line} " in f"\n{result.stdout}"
