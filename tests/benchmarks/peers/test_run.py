"""Whole runs of the comparison, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edgellm.benchmarks.peers import quality
from edgellm.benchmarks.peers.child import Job
from edgellm.benchmarks.peers.measure import run_child
from tests.peers import command_line

OURS, OURS8, THEIRS = "edgellm_onnx:int4-b32", "edgellm_onnx:int8", "llama_cpp:q4_0"


@contextmanager
def busy() -> Iterator[None]:
    """A process that keeps a processor busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how busy others are")
def test_a_busy_machine_is_refused(tiny_source: Path, tmp_path: Path) -> None:
    with busy():
        done = command_line("--models", tiny_source, "--peers", "edgellm_onnx", "--json", tmp_path / "out.json", cache=tmp_path)
    assert done.returncode == 1
    assert "error: the machine is not quiet" in done.stderr
    assert "processors busy" in done.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.fixture(scope="module")
def run(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A whole run on the tiny model, and the folder that it wrote into."""
    folder = tmp_path_factory.mktemp("run")
    wanted = ("edgellm_onnx:int4-b32", "edgellm_onnx:int8", "llama_cpp:q4_0")
    sizes = ("--threads", 1, 2, "--trials", 2, "--prefill", 40, "--depths", 8, 20, "--steps", 4, "--positions", 50)
    files = ("--json", folder / "out.json", "--markdown", folder / "out.md")
    done = command_line("--models", tiny_source, "--peers", *wanted, *sizes, *files, "--noisy", cache=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "out.md").read_text(encoding="utf-8") in done.stdout
    return json.loads((folder / "out.json").read_text(encoding="utf-8")), folder


def test_every_engine_runs_in_every_round(run: tuple[dict[str, Any], Path]) -> None:
    report, _ = run
    assert report["schema"] == 3
    assert report["command"].endswith("--noisy")
    rounds = [(each["round"], each["threads"]) for each in report["samples"]]
    assert rounds == [(0, 1), (0, 1), (0, 2), (0, 2), (1, 1), (1, 1), (1, 2), (1, 2)]
    assert {(each["round"], each["threads"], each["engine"]) for each in report["samples"]} == {
        (number, threads, engine) for number in (0, 1) for threads in (1, 2) for engine in (OURS, OURS8)
    }
    for each in report["samples"]:
        assert all(each[measure] > 0 for measure in ("import_ms", "load_ms", "prefill_40", "decode_8", "decode_20", "rss")), (
            each
        )


def test_what_cannot_run_is_left_out_and_said(run: tuple[dict[str, Any], Path]) -> None:
    report, folder = run
    (left,) = report["left_out"]
    assert left["engine"] == THEIRS
    assert "not installed" in left["reason"] or "not a GGUF file" in left["reason"]
    assert left["reason"] in (folder / "out.md").read_text(encoding="utf-8")


def test_closeness_is_to_the_source_itself(run: tuple[dict[str, Any], Path], tiny_source: Path) -> None:
    report, folder = run
    (found,) = folder.rglob("source-logits-*.npy")
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_source, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_source)
    ids = tokenizer(quality.TEXT.read_text(encoding="utf-8"))["input_ids"][:50]
    assert report["models"][0]["ids"] == ids
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(np.load(found), expected, atol=1e-4)
    kl = {each["engine"]: each["kl"] for each in report["quality"]}
    assert 0 < kl[OURS8] < kl[OURS] < 0.5
    assert "Failed:" not in (folder / "out.md").read_text(encoding="utf-8")


def test_tables_are_drawn_from_the_json_alone(run: tuple[dict[str, Any], Path]) -> None:
    _, folder = run
    done = command_line("--from-json", folder / "out.json", cache=folder / "nothing")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (folder / "out.md").read_text(encoding="utf-8").strip()


def test_a_childs_memory_is_its_own(run: tuple[dict[str, Any], Path]) -> None:
    """getrusage would count this process at the time of the fork."""
    report, folder = run
    ballast = np.ones(100_000_000, np.float64)
    (bundle,) = folder.rglob("edgellm-onnx-int8.*")
    job = Job("speed", "edgellm_onnx", "int8", str(bundle), 1, report["models"][0]["ids"], prefill=8, depths=(4,), steps=2)
    assert run_child(job)["rss"] < ballast.nbytes / 2


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    job = Job("speed", "edgellm_onnx", "int8", str(tmp_path / "nothing"), 1, [5, 6], prefill=4, depths=(2,), steps=1)
    found = run_child(job)
    assert list(found) == ["error"]
    assert "BundleError" in found["error"]


def test_only_a_gguf_is_permuted(tiny_source: Path, tmp_path: Path) -> None:
    done = command_line("--models", f"{tiny_source}-permuted", "--peers", "edgellm_onnx:int8", "--noisy", cache=tmp_path)
    assert done.returncode == 1
    assert "only GGUF sources are permuted" in done.stderr


@pytest.mark.slow
def test_a_permuted_model_is_a_model_of_the_table(models: Callable[[str], Path], tmp_path: Path) -> None:
    sizes = ("--threads", 1, "--trials", 1, "--prefill", 16, "--depths", 4, "--steps", 2, "--positions", 60)
    wanted = ("edgellm_onnx:int4-b32-rtn", "llama_cpp:q8_0", "llama_cpp:q4_0")
    arguments = ("--peers", *wanted, *sizes, "--json", tmp_path / "out.json", "--noisy")
    source = models("smollm2")
    done = command_line("--models", source, f"{source}-permuted", *arguments, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    plain, moved = (each["name"] for each in report["models"])
    assert moved == f"{plain}-permuted"
    kl = {(each["model"], each["engine"]): each["kl"] for each in report["quality"]}
    assert 0 < kl[moved, "llama_cpp:q8_0"] < 0.02  # both are the same function, so 8 bit is close in either order
    engines = {each["engine"] for each in report["engines"]}
    assert all(abs(np.log(kl[moved, each] / kl[plain, each])) > 1e-4 for each in engines), kl
