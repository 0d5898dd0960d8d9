"""What happens around a command: no input, a full disk, a request to end, a package that is not there, hostile names."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import synthetic, tiny_folder
from tests.cli.conftest import ROOT, edgellm, start

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and devices of POSIX systems")
FULL = Path("/dev/full")


def one_line(*arguments: object, status: int = 1) -> str:
    result = edgellm(*arguments)
    assert result.exit_code == status, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(bundle: Path, prompt: str) -> None:
    assert "the prompt is empty" in one_line("run", bundle, prompt, status=2)
    assert "the prompt is empty" in edgellm("run", bundle, "-", input=prompt).stderr


@POSIX
@pytest.mark.parametrize("arguments", [("run", "{bundle}", "-"), ("chat", "{bundle}")], ids=lambda arguments: str(arguments[0]))
def test_no_standard_input_at_all(bundle: Path, arguments: tuple[str, ...]) -> None:
    command = " ".join(argument.format(bundle=bundle) for argument in arguments)
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec '{sys.executable}' -m edgellm {command} <&-"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: standard input is closed; ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(not FULL.exists(), reason="a device that is always full is Linux's")
@pytest.mark.parametrize("arguments", [("--help",), ("inspect", "{bundle}"), ("run", "{bundle}", "hi", "--max-tokens", "3")])
def test_output_that_cannot_be_written_is_one_line(bundle: Path, arguments: tuple[str, ...]) -> None:
    with FULL.open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edgellm", *(argument.format(bundle=bundle) for argument in arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n")


@POSIX
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_terminated_conversion_leaves_nothing(name: str, tmp_path: Path) -> None:
    source = synthetic.write(tmp_path / "source", hidden=1024, intermediate=8192, layers=40, vocab=512)
    folder = tmp_path / "out"
    process = start(
        "convert",
        source,
        "-o",
        folder / "new" / "bundle",
        "--method",
        "rtn",
        "--no-eval",
        environment={"EDGELLM_CACHE": str(tmp_path / "cache")},
    )
    try:
        deadline = time.monotonic() + 60
        while not list(folder.glob("new/.bundle.partial-*/model.onnx*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (128 + getattr(signal, name), b"")
    assert not folder.exists()


@pytest.mark.parametrize(("package", "install"), [("jinja2", "edgellm"), ("onnxruntime", "edgellm[onnx]")])
def test_a_missing_package_is_one_line(bundle: Path, tmp_path: Path, package: str, install: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n", encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = start("run", bundle, "hi", environment={"PYTHONPATH": paths})
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, b"")
    assert errors.count(b"\n") == 1
    assert package.encode() in errors
    assert f"pip install {install}" in errors.decode().replace("'", "")


def test_a_model_without_a_template_says_so_before_the_first_question(tmp_path: Path) -> None:
    source = tiny_folder.write(tmp_path / "tiny", template=None)
    assert edgellm("convert", source, "-o", tmp_path / "bundle").exit_code == 0
    assert "no chat template; use 'edgellm run --raw'" in one_line("chat", tmp_path / "bundle", status=2)
    assert "edgellm run --raw" in one_line("run", tmp_path / "bundle", "hi", "--system", "Be brief.", status=2)


@POSIX
def test_a_name_does_not_command_the_terminal(source: Path, tmp_path: Path) -> None:
    result = edgellm("inspect", shutil.copytree(source, tmp_path / "evil\x1b]0;owned\x07"))
    assert result.exit_code == 0
    assert r"evil\x1b]0;owned\x07" in result.stdout
    assert "\x1b" not in result.stdout
    assert "\x1b" not in one_line("inspect", tmp_path / "no\x1b[2Jsuch")


@POSIX
def test_a_terminal_gets_no_control_characters_of_an_answer(bundle: Path) -> None:
    import pty

    ask = ("run", bundle, "Hi", "--max-tokens", "200", "--temperature", "3", "--seed", "4")
    plain = edgellm(*ask).stdout
    controls = {chr(code) for code in range(32)} - set("\n\t")
    assert controls & set(plain)  # a random model says a bit of everything
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "edgellm", *map(str, ask)], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # what Linux says when the other side has ended
            pass
    os.close(ours)
    assert process.returncode == 0
    assert not controls & set(shown.decode(errors="replace").replace("\r\n", "\n"))


@pytest.mark.parametrize(("target", "reason"), [("file/below", "ot a directory"), ("x" * 300, "ame too long")])
@POSIX
def test_a_target_that_cannot_be(source: Path, tmp_path: Path, target: str, reason: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert reason in one_line("convert", source, "-o", tmp_path / target)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", ["run", "inspect", "verify"])
def test_what_is_too_long_for_a_path_is_not_there(command: str) -> None:
    assert ": no such f" in one_line(command, "x" * 5000, *["hi"][: command == "run"])


def test_a_report_that_cannot_be_written_is_refused_before_measuring(bundle: Path, tmp_path: Path) -> None:
    started = time.perf_counter()
    assert "its folder does not exist" in one_line("bench", bundle, "--trials", 1000, "--json", tmp_path / "no" / "report.json")
    assert "is a folder" in one_line("bench", bundle, "--trials", 1000, "--json", tmp_path)
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize("threads", [1025, 1 << 31, 1 << 70])
def test_more_threads_than_make_sense(bundle: Path, threads: int) -> None:
    assert f"threads is {threads}; use 1 to 1024" in one_line("run", bundle, "hi", "--threads", threads, status=2)
