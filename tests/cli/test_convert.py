from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import edgellm as library
from edgellm.bundle import Bundle
from edgellm.converters import targets
from edgellm.scheme import Scheme
from tests import synthetic, tiny_folder
from tests.cli.conftest import edgellm, start


@pytest.mark.parametrize(
    ("options", "name", "grid"),
    [
        (("--method", "imatrix"), "int4", (4, 32)),
        (("--target", "tflite", "--method", "rtn"), "int4", (4, 32)),
        (("--target", "tflite-compat"), "int4", (4, 0)),
        (("--target", "tflite-compat", "--quant", "int8"), "int8", (8, 0)),
        (("--quant", "int4", "--block-size", "64"), "int4", (4, 64)),
        (("--quant", "int8", "--block-size", "128"), "int8", (8, 128)),
        (("--quant", "fp32"), "fp32", None),
    ],
)
def test_options_choose_the_grid(
    source: Path, tmp_path: Path, options: tuple[str, ...], name: str, grid: tuple[int, int] | None
) -> None:
    result = edgellm("convert", source, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    bundle = Bundle.open(tmp_path / "out")
    assert bundle.recipe.name == name
    scheme = bundle.recipe.scheme("layers.0.q.weight")
    assert (scheme and (scheme.bits, scheme.block)) == grid
    assert result.stdout.startswith(f"{tmp_path / 'out'}: llama, {name}, ")
    assert result.stderr == ""


def test_products_that_take_other_inputs_are_told(tmp_path: Path) -> None:
    """By the conversion, and by `inspect` afterwards; what takes the same everywhere is no news."""
    loud = tiny_folder.write_loud(tmp_path / "source")
    said = "8 bits, rounded as they come; float32 into layers.1.down"
    done = edgellm("convert", loud, "-o", tmp_path / "out", "--method", "gptq")
    assert f"\nonnx: activations: {said}\n" in done.stdout
    assert f"\nactivations of onnx {said}\n" in edgellm("inspect", tmp_path / "out").stdout
    asked = edgellm("convert", loud, "-o", tmp_path / "asked", "--quant", "int8", "--activations", "none")
    assert (asked.exit_code, "activations" in asked.stdout) == (0, False)
    assert "\nactivations of onnx float32\n" in edgellm("inspect", tmp_path / "asked").stdout
    refused = edgellm("convert", loud, "-o", tmp_path / "no", "--activations", "int8")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.startswith("error: --activations: 8 bits with scales fixed beforehand ruin a model")


def test_both_runtimes_in_one_folder(both: Path) -> None:
    bundle = Bundle.open(both)
    bundle.verify()
    assert list(bundle.graphs) == ["onnx", "tflite"]
    assert {"model.onnx", "model.onnx.data", "model.tflite", "tokenizer.json"} <= set(bundle.files)


def test_the_targets_that_help_shows_are_those_there_are(source: Path, tmp_path: Path) -> None:
    text = "|".join([*targets.available(), "both"])
    assert f"--target [{text}]" in "".join(edgellm("convert", "--help").stdout.split("\n"))
    result = edgellm("convert", source, "-o", tmp_path / "out", "--target", "neither")
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert result.stderr.startswith("error: --target: unknown target 'neither'; choose one of onnx, ")


@pytest.mark.parametrize("spelling", ["tflite-compat", "tflite_compat"])
def test_a_target_is_a_package_and_a_hyphen_is_an_underscore(source: Path, tmp_path: Path, spelling: str) -> None:
    assert edgellm("convert", source, "-o", tmp_path / "out", "--target", spelling, "--quant", "fp32").exit_code == 0
    assert list(Bundle.open(tmp_path / "out").graphs) == ["tflite_compat"]
    refused = edgellm("convert", source, "-o", tmp_path / "other", "--target", "tflite compat")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "unknown target 'tflite compat'; choose one of onnx, tflite, tflite-compat, both" in refused.stderr


def test_blocks_where_the_runtime_has_none_are_refused(source: Path, tmp_path: Path) -> None:
    result = edgellm("convert", source, "-o", tmp_path / "out", "--target", "tflite-compat", "--block-size", "32")
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert result.stderr == "error: --block-size: tflite-runtime has no kernels for blocks of 32; leave it out, or give 0\n"


def test_max_context_is_kept(source: Path, tmp_path: Path) -> None:
    assert edgellm("convert", source, "-o", tmp_path / "out", "--max-context", "100").exit_code == 0
    assert Bundle.open(tmp_path / "out").spec.max_context == 100


def test_too_little_ram_names_the_least(source: Path, tmp_path: Path) -> None:
    result = edgellm("convert", source, "-o", tmp_path / "out", "--max-ram", "1M")
    assert result.exit_code == 1
    assert "--max-ram" in result.stderr
    least = result.stderr.split("at least ")[1].strip()
    assert edgellm("convert", source, "-o", tmp_path / "out", "--max-ram", least).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "magic"), "unknown method 'magic'"),
        (("--adapter", "no-such-lora"), "no-such-lora"),
        (("--max-context", "1000000"), "max_context 1000000"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    source: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = edgellm("convert", source, "-o", tmp_path / "out", *options)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    result = edgellm("convert", source, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
def test_a_terminal_sees_progress(source: Path, tmp_path: Path) -> None:
    import pty
    import subprocess

    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "edgellm", "convert", str(source), "-o", str(tmp_path / "out"), "--no-eval"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, env=environment) as process:
        os.close(end)
        shown = bytearray()
        try:
            while piece := os.read(terminal, 4096):
                shown += piece
        except OSError:  # Linux reports the closed terminal as an I/O error
            pass
    os.close(terminal)
    assert process.returncode == 0
    assert "━" in shown.decode("utf-8", "replace")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A conversion of 4 GB, so that the signal comes while it writes, however busy the machine is."""
    folder = tmp_path_factory.mktemp("large") / "zeros"
    source = synthetic.write(folder, hidden=2048, intermediate=8192, layers=22, vocab=180_000)
    out = tmp_path / "out"
    with start("convert", source, "-o", out, "--preset", "fast", "--no-eval") as process:  # nothing is calibrated before
        deadline = time.monotonic() + 60
        while not (written := list(tmp_path.glob(".out.partial-*/model.onnx.data"))) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert written
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, b"", b"interrupted\n")
    assert list(tmp_path.iterdir()) == []


RECIPE = """
base = "int8"
[[rule]]
tensors = ["v", "down"]
layers = "last 1"
bits = 4
block = 32
"""


def test_a_recipe_file_serves_every_target_on_its_own_grids(source: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE, encoding="utf-8")
    result = edgellm("convert", source, "-o", tmp_path / "out", "--recipe", tmp_path / "r.toml", "--target", "both")
    assert result.exit_code == 0, result.output
    assert "llama, int8," in result.stdout
    bundle = Bundle.open(tmp_path / "out")
    onnx, tflite = (bundle.recipe_of(bundle.graphs[name]) for name in ("onnx", "tflite"))
    for name in ("layers.1.v.weight", "layers.1.down.weight"):
        assert onnx.scheme(name) == Scheme(4, 32, symmetric=False)
        assert tflite.scheme(name) == Scheme(4, 32, scales="positive bfloat16")
    assert onnx.scheme("layers.0.v.weight") == Scheme(8, 32)
    assert tflite.scheme("layers.0.v.weight") == Scheme(8, 0, scales="positive")
    logits = []
    for name in ("onnx", "tflite"):
        with library.load(tmp_path / "out", runtime=name) as llm:
            logits.append(llm.session().logits([5, 9, 40, 77, 8]))
    assert np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1] > 0.95


def test_quant_goes_before_the_files_base(source: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE, encoding="utf-8")
    edgellm("convert", source, "-o", tmp_path / "out", "--recipe", tmp_path / "r.toml", "--quant", "fp32")
    recipe = Bundle.open(tmp_path / "out").recipe
    assert recipe.name == "fp32"
    assert recipe.scheme("layers.0.v.weight") is None
    assert recipe.scheme("layers.1.v.weight") == Scheme(4, 32, symmetric=False)
    assert recipe.method == "imatrix"
    assert recipe.calibration is not None


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        ("[[rule]]\nbits = 3", "onnx", "rule 1: bits: 3 is not a number of bits"),
        ("[[rule]]\nbits = 4\nblock = 16", "both", "rule 1: block: tflite has no blocks of 16; choose one of 0, 32, 64, 128"),
        ("[[rule]]\nbits = 4\nlayers = 2", "onnx", "rule 1: layers: '2' is not in a model of 2 layers"),
    ],
)
def test_a_recipe_that_cannot_be_met_leaves_nothing(source: Path, tmp_path: Path, text: str, target: str, words: str) -> None:
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    result = edgellm("convert", source, "-o", tmp_path / "out", "--recipe", tmp_path / "r.toml", "--target", target)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"r.toml: {words}" in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.toml"]
