"""The command: what it refuses before anything is spent, drawing again, and a whole run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgellm.benchmarks import result
from edgellm.benchmarks.frontier.__main__ import main
from edgellm.benchmarks.peers.lanes import label
from tests.frontier_run import made
from tests.gguf_files import write_model
from tests.peers import command_line

LLAMA_CPP = ("q4_0", "q4_0-imatrix", "q5_0", "q8_0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "it.pdf"], "it.pdf: unknown kind of picture; choose one of .svg, .png"),
        (["--plot", "nowhere/it.svg"], "no such folder; make it, or give --plot another file"),
        (["--json", "nowhere/it.json"], "no such folder; make it, or give --json another file"),
        (["--trials", "0"], "0 is too small; give numbers of 1 or more"),
        (["--depths", "32", "-1"], "-1 is too small"),
        (["--peers", "llama_cpp:q9*"], "llama_cpp has no 'q9*'"),
        (["--from-json", "missing.json"], "missing.json: cannot be read"),
        (["--from-json", "other.json"], "other.json: no benchmark run; give a file that"),
        (["--from-json", "broken.json"], "broken.json: cannot be read"),
        (
            ["--models", "quantized.gguf", "--noisy"],
            "its values are on the grids of Q4_0 already; give quantized.gguf-permuted",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "quantized.gguf", kind="Q4_0", tensors={"weight": np.ones((2, 32), np.float32)})
    (tmp_path / "other.json").write_text('{"kind": "conversion"}', encoding="utf-8")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["frontier", *arguments])
    assert main() == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert sorted(tmp_path.iterdir()) == before


def test_drawing_again_needs_the_json_alone_and_gives_the_same_bytes(tmp_path: Path) -> None:
    result.write(made(), tmp_path / "run.json")
    stamp = (tmp_path / "run.json").read_bytes()
    for name in ("one", "two"):
        files = ("--markdown", tmp_path / f"{name}.md", "--plot", tmp_path / f"{name}.svg")
        done = command_line("--from-json", tmp_path / "run.json", *files, cache=tmp_path / "nothing", module="frontier")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.md").read_bytes() == (tmp_path / "two.md").read_bytes()
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.md").read_text(encoding="utf-8") in done.stdout
    assert (tmp_path / "run.json").read_bytes() == stamp


@pytest.mark.slow
def test_a_whole_run(models: Callable[[str], Path], tmp_path: Path) -> None:
    """One round of a few files of the real model: closeness orders them as theory has it, and all of it is drawn."""
    pytest.importorskip("llama_cpp")
    source, cache = models("smollm2"), Path(os.environ["XDG_CACHE_HOME"])  # where costly files are kept between runs
    ours = ("edgellm_onnx:int4-b32-imatrix", "edgellm_onnx:int4-b32-rtn", "edgellm_tflite:int4-b32-rtn")
    wanted = (*ours, *(f"llama_cpp:{name}" for name in LLAMA_CPP))
    sizes = ("--threads", 1, "--trials", 1, "--prefill", 16, "--depths", 4, "--steps", 2, "--positions", 200)
    files = ("--json", tmp_path / "it.json", "--markdown", tmp_path / "it.md", "--plot", tmp_path / "it.png")
    done = command_line(
        "--models", f"{source}-permuted", "--peers", *wanted, *sizes, *files, "--noisy", cache=cache, module="frontier"
    )
    assert done.returncode == 0, done.stderr
    run = result.read(tmp_path / "it.json")
    assert run.command.startswith("python -m edgellm.benchmarks.frontier --models")
    halves = {label(lane): lane.recipe and lane.recipe.bits_half for lane in run.lanes}
    assert halves["llama.cpp:q4_0"] == halves["edgellm-tflite:int4-b32-rtn"] == 4.5
    assert (halves["llama.cpp:q5_0"], halves["llama.cpp:q8_0"]) == (5.5, 8.5)
    assert halves["edgellm-onnx:int4-b32-imatrix"] == halves["edgellm-onnx:int4-b32-rtn"] == 4.625
    kl = {label(lane): lane.quality.kl for lane in run.lanes if lane.quality}
    theirs = [name for name in kl if name.startswith("llama.cpp")]
    assert sorted(theirs, key=kl.__getitem__) == [f"llama.cpp:{name}" for name in ("q8_0", "q5_0", "q4_0-imatrix", "q4_0")]
    assert kl["edgellm-onnx:int4-b32-imatrix"] < 0.8 * kl["edgellm-onnx:int4-b32-rtn"]
    text = (tmp_path / "it.md").read_text(encoding="utf-8")
    assert "Failed:" not in text
    assert not any(lane.model in note for lane in run.lanes for note in run.notes), "no file is left out"
    assert text.count("| onnx:int4-b32-imatrix |") == 1
    assert (tmp_path / "it.png").stat().st_size > 10_000
