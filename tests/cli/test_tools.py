"""inspect, verify, bench, doctor."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgellm.bundle import Bundle
from tests.cli.conftest import edgellm


def test_inspect_says_what_a_bundle_is(bundle: Path) -> None:
    value = json.loads(edgellm("inspect", bundle, "--json").stdout)
    assert (value["kind"], value["license"], value["spec"]["architecture"]) == ("bundle", "mit", "llama")
    assert value["files"] == {file.name: file.stat().st_size for file in bundle.iterdir() if file.name != "edgellm.json"}
    graph = (bundle / "model.onnx").stat().st_size + (bundle / "model.onnx.data").stat().st_size
    assert value["weights"] == {"int4": graph}

    per_token = 2 * 2 * 2 * 16 * 4  # keys and values, layers, KV heads, channels, bytes of a float32
    assert [row["context"] for row in value["memory"]] == [512, 1024, 2048, 4096]
    for row in value["memory"]:
        assert row["kv"] == per_token * row["context"]
        assert row["total"] == {"int4": graph + row["kv"]}
        assert row["fits"]["int4"] in (True, None)


def test_what_a_source_would_take_is_what_its_bundles_take(source: Path, bundle: Path, tmp_path: Path) -> None:
    value = json.loads(edgellm("inspect", source, "--json").stdout)
    assert (value["kind"], value["license"], value["files"]) == ("source", "mit", {})
    assert value["weights"]["int4"] == (bundle / "model.onnx.data").stat().st_size
    for quant in ("int8", "fp32"):
        assert edgellm("convert", source, "-o", tmp_path / quant, "--quant", quant).exit_code == 0
        assert value["weights"][quant] == (tmp_path / quant / "model.onnx.data").stat().st_size
    of_bundle = json.loads(edgellm("inspect", bundle, "--json").stdout)
    assert value["spec"] == of_bundle["spec"]
    assert [row["kv"] for row in value["memory"]] == [row["kv"] for row in of_bundle["memory"]]


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
    needed = facts.fits(None)[1]["total"]["int4"]
    assert [row["fits"]["int4"] for row in facts.fits(needed)] == [True, True, False, False]
    assert {row["fits"]["int4"] for row in facts.fits(None)} == {None}


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


def test_bench(bundle: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = edgellm("bench", bundle, "--trials", "2", "--threads", "1", "--json", report)
    assert result.exit_code == 0, result.output
    for measure in ("load", "prefill 128", "prefill 512", "time to first token", "decode 64 after 128", "peak RSS"):
        assert measure in result.stdout
    assert json.loads(report.read_text(encoding="utf-8"))["threads"] == 1
    to_stdout = edgellm("bench", bundle, "--trials", "1", "--json", "-")
    assert json.loads(to_stdout.stdout)["bundle"] == "tiny-int4"


@pytest.mark.parametrize(("target", "package"), [("onnx", "onnxruntime"), ("tflite", "ai-edge-litert")])
def test_bench_names_the_runtime_that_ran(source: Path, tmp_path: Path, target: str, package: str) -> None:
    edgellm("convert", source, "-o", tmp_path / "bundle", "--target", target)
    last = edgellm("bench", tmp_path / "bundle", "--trials", "1", "--threads", "1").stdout.splitlines()[-1]
    assert last.endswith(f"1 threads, {package} {importlib.metadata.version(package)}")


def test_doctor_knows_this_machine() -> None:
    result = edgellm("doctor")
    assert result.exit_code == 0
    import onnxruntime

    assert f"onnxruntime      {onnxruntime.__version__}" in result.stdout
    assert "\nai-edge-litert   " in result.stdout
    for line in ("edgellm", "system", "cpu", "cpu features", "threads", "memory", "cache"):
        assert f"\n{line} " in f"\n{result.stdout}"
