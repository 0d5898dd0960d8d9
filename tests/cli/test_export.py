"""`edgellm export` as a user meets it: what it makes, what it refuses, what is left when it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgellm.litertlm import check_litertlm
from tests import synthetic
from tests.cli.conftest import ROOT, edgellm, start


@pytest.fixture(scope="module")
def tflite_bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny-tflite"
    result = edgellm("convert", source, "-o", folder, "--target", "tflite")
    assert result.exit_code == 0, result.output
    return folder


def test_it_makes_the_file_and_says_so(tflite_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.litertlm"
    result = edgellm("export", tflite_bundle, "--litertlm", file, "--max-context", 64)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{file}: ")
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
    check_litertlm(file)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.litertlm"]


def test_help_says_what_is_fixed(tmp_path: Path) -> None:
    text = " ".join(edgellm("export", "--help").stdout.split())
    assert "fixed in the file; the bundle's own, at most 2048, if not given" in text


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--max-context", "4097"), 2, "4097 is not between 1 and the bundle's 4096; choose another, or convert the model"),
        (("--max-context", "0"), 2, "0 is not in the range x>=1"),
        (("--litertlm", "{folder}/file.litertlm/below.litertlm"), 1, "ot a directory; choose another FILE"),
        (("--litertlm", "{folder}/" + "x" * 300 + ".litertlm"), 1, "ame too long; choose another FILE"),
        (("--litertlm", "{folder}/file.litertlm"), 1, "the target exists already; remove it or choose another FILE"),
        (("--litertlm", "{folder}/file"), 2, "LiteRT-LM takes files named *.litertlm only; name it file.litertlm"),
    ],
)
def test_what_cannot_be_is_one_line(
    tflite_bundle: Path, tmp_path: Path, options: tuple[str, ...], status: int, message: str
) -> None:
    (tmp_path / "file.litertlm").write_text("mine", encoding="utf-8")
    values = [value.replace("{folder}", str(tmp_path)) for value in options]
    result = edgellm("export", tflite_bundle, "--litertlm", tmp_path / "new.litertlm", *values)
    assert result.exit_code == status
    assert message in result.stderr
    assert [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")] == result.stderr.splitlines()[
        -1:
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.litertlm"]
    assert (tmp_path / "file.litertlm").read_text(encoding="utf-8") == "mine"


def test_a_bundle_for_another_runtime_names_the_cure(bundle: Path, tmp_path: Path) -> None:
    result = edgellm("export", bundle, "--litertlm", tmp_path / "file.litertlm")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"error: {bundle}: the bundle is for onnx, and LiteRT-LM needs a TFLite graph; convert the model with --target tflite\n"
    )
    assert "no such folder" in edgellm("export", tmp_path / "none", "--litertlm", tmp_path / "file.litertlm").stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours(tflite_bundle: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        result = edgellm("export", tflite_bundle, "--litertlm", tmp_path / "file.litertlm")
    finally:
        tmp_path.chmod(0o700)
    assert "cannot write: Permission denied" in result.stderr


def test_a_missing_packer_is_one_line(tflite_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['litert_lm_builder'] = None\n", encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = start("export", tflite_bundle, "--litertlm", tmp_path / "file.litertlm", environment={"PYTHONPATH": paths})
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, b"")
    assert errors == b"error: the package 'litert_lm_builder' is not installed; pip install 'edgellm[litertlm]'\n"


def test_it_imports_no_runtime(tflite_bundle: Path, tmp_path: Path) -> None:
    """Packing needs the flatbuffers' schema and the packer, and neither a runtime's native code nor torch."""
    code = (
        "import sys\nfrom edgellm.litertlm import export_litertlm\n"
        f"export_litertlm({str(tflite_bundle)!r}, {str(tmp_path / 'file.litertlm')!r})\n"
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('torch', 'tensorflow', 'transformers', 'onnx', 'onnxruntime', 'litert_lm') or 'compiled_model' in name])"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("name", "status", "said"), [("SIGINT", 130, b"interrupted\n"), ("SIGTERM", 143, b"")])
def test_a_stopped_export_leaves_nothing(name: str, status: int, said: bytes, tmp_path: Path) -> None:
    """Half a gigabyte, so that the signal comes in the middle of it however busy the machine is."""
    source = synthetic.write(tmp_path / "source", hidden=1024, intermediate=8192, layers=18, vocab=512)
    assert edgellm("convert", source, "-o", tmp_path / "bundle", "--target", "tflite", "--quant", "int8").exit_code == 0
    out = tmp_path / "out"
    with start("export", tmp_path / "bundle", "--litertlm", out / "file.litertlm") as process:
        deadline = time.monotonic() + 60
        while not list(out.glob(".file.litertlm.partial-*/model.tflite")) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None
        process.send_signal(getattr(signal, name))
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (status, b"", said)
    assert not out.exists()
